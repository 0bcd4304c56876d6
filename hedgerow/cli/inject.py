"""``inject`` and ``uninject`` do to files what the webhook does to pods; ``injector`` runs the webhook."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from hedgerow.cli import context
from hedgerow.cli.programs import Config

if TYPE_CHECKING:
    from controller.injection.manifests import Done
    from controller.injection.settings import InjectionSettings

File = Annotated[
    str, typer.Option("--filename", "-f", metavar="FILE", help="YAML or JSON to read; - for standard input.")
]


def inject(
    filename: File,
    config: Annotated[
        Path | None, typer.Option("--config", metavar="FILE", help="The injector's settings (injector.yaml).")
    ] = None,
    image: Annotated[str, typer.Option("--image", metavar="IMAGE", help="The sidecar's image.")] = "",
    namespace: Annotated[
        str, typer.Option("--namespace", "-n", metavar="NAME", help="Of objects that name none.")
    ] = "default",
    kubernetes_version: Annotated[
        str, typer.Option("--kubernetes-version", metavar="VERSION", help="Of the cluster, such as 1.36.")
    ] = "",
) -> None:
    """Put the sidecar into every pod of a file, as the webhook would.

    The result goes to standard output; objects without pods pass as they are.
    """

    def change(text: str) -> Done:
        from controller.injection.manifests import inject_text

        return inject_text(text, _settings(config, image, kubernetes_version), namespace)

    _work(filename, change)


def uninject(filename: File) -> None:
    """Take the sidecar out of every pod of a file again."""

    def change(text: str) -> Done:
        from controller.injection.manifests import uninject_text

        return uninject_text(text)

    _work(filename, change)


def injector(config: Config) -> None:
    """Run the webhook that puts sidecars into pods."""
    from controller.injection.__main__ import main

    raise typer.Exit(main(["--config", str(config)], accept=_check_for_sidecars))


def _check_for_sidecars(settings: InjectionSettings) -> None:
    """Have a sidecar's own reader look at what every sidecar is to be told, before the first pod is.

    The injector may not import the sidecar; without this, a wrong value would be found by pods that do not start.

    :raises ConfigError: naming the field below ``injection.sidecar``, what is wrong with it and the remedy
    """
    from controller.errors import ConfigError
    from sidecar.errors import ConfigError as Refused
    from sidecar.settings import Settings

    made = {
        "instance": "any",
        "addresses": ["192.0.2.1"],
        "controller": str(settings.controller),
        "issuer": str(settings.issuer),
        "trust_domain": settings.trust_domain,
        "trust_bundle": "any",
        "state_dir": "any",
        "service_account_token_file": "any",
    }
    try:
        Settings.parse({**settings.sidecar, **made})
    except Refused as error:
        raise ConfigError(f"injection.sidecar.{error}") from None


def _settings(config: Path | None, image: str, version: str) -> InjectionSettings:
    """Those of a file, else the defaults with the image of this version."""
    import dataclasses

    from controller.injection.program_settings import read_injection_section
    from controller.injection.settings import IMAGE, InjectionSettings, kubernetes_version
    from graph.fields import Unfit
    from hedgerow import __version__

    if image and not IMAGE.fullmatch(image):
        context.fail(
            f"--image: {image[:80]!r} is no image", "write one such as registry.example/hedgerow/sidecar:1.0", 2
        )
    if config is None:
        settings = InjectionSettings(image=f"hedgerow/sidecar:{__version__}")
    else:
        settings = read_injection_section(config)
        _check_for_sidecars(settings)
    if image:
        settings = dataclasses.replace(settings, image=image)
    try:
        known = kubernetes_version(version)
    except Unfit as error:
        context.fail(f"--kubernetes-version: {error.problem}", error.remedy, 2)
    return settings if known is None else dataclasses.replace(settings, kubernetes_version=known)


def _work(filename: str, change: Callable[[str], Done]) -> None:
    from controller.errors import ConfigError, ControllerError

    text = _read(filename)
    try:
        done = change(text)
    except ConfigError as error:
        context.fail(f"{error.field}: {error.problem}" if error.field else error.problem, error.remedy, 2)
    except ControllerError as error:
        context.fail(f"{filename}, {error.field}: {error.problem}", error.remedy, 1)
    sys.stdout.flush()
    sys.stdout.buffer.write(done.text.encode())
    sys.stdout.buffer.flush()
    if not done.seen:
        print(f"{'standard input' if filename == '-' else filename}: no pods in it, nothing to change", file=sys.stderr)
    for one in done.seen:
        print(f"{one.object}: {one.what}", file=sys.stderr)
        for warning in one.warnings:
            print(f"  warning: {warning}", file=sys.stderr)


def _read(filename: str) -> str:
    from controller.injection.manifests import MAX_BYTES

    try:
        if filename == "-":
            data = sys.stdin.buffer.read(MAX_BYTES + 1)
        else:
            with Path(filename).open("rb") as file:
                data = file.read(MAX_BYTES + 1)
    except OSError as error:
        context.fail(f"{filename}: {error.strerror}", "name a file that can be read, or - for standard input", 2)
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        context.fail(f"{filename}: not UTF-8 (byte {error.start})", "save it as UTF-8", 2)
