"""The local DNS proxy: passes the application's questions on, and learns which names the answers bind to addresses."""
