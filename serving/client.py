"""Commands that talk to a running server, over the same routes as everybody else."""

from __future__ import annotations

import http.client
import json
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

import click

url_option = click.option(
    "--url", default="http://127.0.0.1:8000", help="Where the server answers HTTP."
)


@click.command()
@url_option
def health(url: str) -> None:
    """Exit with 0 if the server is ready for requests, with 1 if not."""
    status, _, _ = _call(url, "GET", "/v2/health/ready")
    if status != 200:
        raise click.ClickException(f"{url} is not ready")
    click.echo("ready")


@click.command("list")
@url_option
def list_models(url: str) -> None:
    """List the models of a running server and their states."""
    for model in _post(url, "/v2/repository/index", b""):
        # Of one that was never asked for, the protocol tells no state.
        state = model.get("state", "UNAVAILABLE")
        line = f"{model['name']:<24} {model.get('version', ''):>4}  {state}"
        click.echo(f"{line}  {model['reason']}" if "reason" in model else line)


@click.command()
@click.argument("name")
@click.argument("input_file", metavar="INPUT", type=click.Path(path_type=Path))
@click.option(
    "--output", metavar="FILE", type=click.Path(path_type=Path), help="Write the answer there."
)
@url_option
def infer(name: str, input_file: Path, output: Path | None, url: str) -> None:
    """Send the file INPUT to the model NAME of a running server and print its answer.

    \b
    slipway infer digits digit.png
    slipway infer digits-diffusion prompt.txt --output seven.png
    """
    try:
        body = input_file.read_bytes()
    except OSError as error:
        raise click.ClickException(f"{input_file}: {error.strerror}") from error
    status, media_type, answer = _call(url, "POST", f"/models/{quote(name, safe='')}", body)
    if status != 200 or media_type == "application/json":
        content = json.dumps(_read(url, status, answer), indent=2)
        if output is None:
            click.echo(content)
            return
        answer = f"{content}\n".encode()
    if output is None:
        raise click.ClickException(
            f"the answer is {len(answer):,} bytes of {media_type}; say where with --output FILE"
        )
    try:
        output.write_bytes(answer)
    except OSError as error:
        raise click.ClickException(f"{output}: {error.strerror}") from error
    click.echo(f"wrote {output}")


def _post(url: str, path: str, body: bytes) -> Any:
    status, _, raw = _call(url, "POST", path, body)
    return _read(url, status, raw)


def _read(url: str, status: int, raw: bytes) -> Any:
    try:
        answer = json.loads(raw)
    except ValueError as error:
        raise click.ClickException(f"{url} answered something that is not JSON") from error
    if status != 200:
        raise click.ClickException(f"{status}: {answer.get('error', answer)}")
    return answer


def _call(url: str, method: str, path: str, body: bytes = b"") -> tuple[int, str, bytes]:
    try:
        address = urlsplit(url)
        host, port = address.hostname, address.port
    except ValueError:
        host = None
    if host is None or address.scheme not in ("http", "https"):
        raise click.ClickException(f"--url must look like http://127.0.0.1:8000, got {url!r}")
    https = address.scheme == "https"
    connect = http.client.HTTPSConnection if https else http.client.HTTPConnection
    connection = connect(host, port, timeout=60)
    try:
        connection.request(method, path, body, {"Content-Type": "application/octet-stream"})
        response = connection.getresponse()
        return response.status, response.getheader("content-type", ""), response.read()
    except (OSError, http.client.HTTPException) as error:
        raise click.ClickException(
            f"no HTTP answer from {url}: {error!r:.100}; is the server up?"
        ) from error
    finally:
        connection.close()
