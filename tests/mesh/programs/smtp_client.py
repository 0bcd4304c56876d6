"""Sends the message on its standard input by smtplib; without one it only says hello and prints the greeting.

python smtp_client.py HOST PORT
"""

from __future__ import annotations

import smtplib
import sys

message = sys.stdin.buffer.read()
with smtplib.SMTP(timeout=20) as client:
    code, greeting = client.connect(sys.argv[1], int(sys.argv[2]))
    print(code, greeting.decode())
    client.ehlo("client.example")
    if message:
        refused = client.sendmail("from@example", ["to@example"], message)
        print("refused", len(refused))
