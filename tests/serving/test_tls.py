"""HTTPS and gRPC over TLS: real handshakes, and certificates of an authority made for the test."""

from __future__ import annotations

import http.client
import json
import socket
import ssl
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import tritonclient.grpc
import tritonclient.http
import trustme
from tritonclient.utils import InferenceServerException

from tests.support import RunningServer, call, run_slipway, serving, write_model

FRONTS = ("native", "grpcio")


@dataclass(frozen=True)
class Files:
    """PEM: an authority, and a certificate with its key for a server and for a caller."""

    authority: Path
    server: tuple[Path, Path]
    caller: tuple[Path, Path]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Files:
    folder = tmp_path_factory.mktemp("pem")
    authority = trustme.CA()
    authority.cert_pem.write_to_path(folder / "authority.pem")

    def issue(name: str, identity: str) -> tuple[Path, Path]:
        issued = authority.issue_cert(identity)
        certificate, key = folder / f"{name}.pem", folder / f"{name}.key"
        for blob in issued.cert_chain_pems:
            blob.write_to_path(certificate, append=True)
        issued.private_key_pem.write_to_path(key)
        return certificate, key

    return Files(
        folder / "authority.pem", issue("server", "127.0.0.1"), issue("caller", "ann@example.org")
    )


def options(files: Files, *, mutual: bool) -> list[str]:
    certificate, key = map(str, files.server)
    chosen = ["--http-server-cert", certificate, "--http-server-key", key]
    chosen += ["--grpc-server-cert", certificate, "--grpc-server-key", key]
    root = str(files.authority)
    if mutual:
        return [
            *chosen,
            *("--http-root-cert", root),
            *("--grpc-use-ssl-mutual", "true", "--grpc-root-cert", root),
        ]
    return [*chosen, "--grpc-use-ssl", "true"]


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("tls")
    write_model(directory, "double", operation="Add", shape=("batch", "n"), dims="[-1]")
    return directory


@pytest.fixture(scope="module", params=FRONTS)
def secured(
    request: pytest.FixtureRequest, files: Files, repository: Path
) -> Iterator[RunningServer]:
    with serving(
        repository, *options(files, mutual=False), "--grpc-front", request.param
    ) as server:
        yield server
        silent = socket.create_connection(("127.0.0.1", server.grpc_port))
    # Neither who has failed to shake hands nor who has not begun is in the way of its end.
    with silent:
        assert server.process.returncode == 0


@pytest.fixture(scope="module", params=FRONTS)
def mutual(
    request: pytest.FixtureRequest, files: Files, repository: Path
) -> Iterator[RunningServer]:
    with serving(repository, *options(files, mutual=True), "--grpc-front", request.param) as server:
        yield server


def trusting(files: Files, *, as_caller: bool = False) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=files.authority)
    if as_caller:
        context.load_cert_chain(*files.caller)
    return context


@contextmanager
def https(server: RunningServer, context: ssl.SSLContext) -> Iterator[http.client.HTTPSConnection]:
    address = ("127.0.0.1", server.http_port)
    with closing(http.client.HTTPSConnection(*address, timeout=10, context=context)) as connection:
        yield connection


def ask(
    connection: http.client.HTTPSConnection, numbers: int, headers: dict[str, str]
) -> tuple[int, list[float]]:
    values = np.arange(numbers, dtype=np.float32)
    tensor = {"name": "x", "shape": [1, numbers], "datatype": "FP32", "data": values.tolist()}
    body = json.dumps({"inputs": [tensor]}).encode()
    connection.request("POST", "/v2/models/double/infer", body, headers)
    response = connection.getresponse()
    answer = json.loads(response.read())
    return response.status, answer["outputs"][0]["data"]


# An Expect header is what makes the connection leave a call to the application.
@pytest.mark.parametrize("headers", [{}, {"Expect": "100-continue"}], ids=["direct", "app"])
@pytest.mark.parametrize("numbers", [4, 200_000], ids=["small", "large"])
def test_https_answers_call_after_call(
    secured: RunningServer, files: Files, headers: dict[str, str], numbers: int
) -> None:
    with https(secured, trusting(files)) as connection:
        for _ in range(2):
            status, doubled = ask(connection, numbers, headers)
            assert status == 200
            assert doubled == [2.0 * number for number in range(numbers)]
        assert isinstance(connection.sock, ssl.SSLSocket)
        assert connection.sock.version() in ("TLSv1.2", "TLSv1.3")


def test_each_port_names_its_protocol(secured: RunningServer, files: Files) -> None:
    for port, protocol in ((secured.http_port, "http/1.1"), (secured.grpc_port, "h2")):
        context = trusting(files)
        context.set_alpn_protocols(["h2", "http/1.1"])
        with (
            socket.create_connection(("127.0.0.1", port), timeout=10) as raw,
            context.wrap_socket(raw, server_hostname="127.0.0.1") as wrapped,
        ):
            assert wrapped.selected_alpn_protocol() == protocol


def test_who_does_not_know_the_authority_does_not_trust_the_server(
    secured: RunningServer,
) -> None:
    with (
        https(secured, ssl.create_default_context()) as connection,
        pytest.raises(ssl.SSLCertVerificationError),
    ):
        connection.connect()


def test_who_speaks_without_tls_gets_no_answer_and_disturbs_nobody(
    secured: RunningServer, files: Files
) -> None:
    for port in (secured.http_port, secured.grpc_port):
        with socket.create_connection(("127.0.0.1", port), timeout=10) as raw:
            raw.sendall(b"GET /v2/health/live HTTP/1.1\r\nHost: a\r\n\r\n")
            assert not raw.recv(1000).startswith(b"HTTP/")
    with https(secured, trusting(files)) as connection:
        assert ask(connection, 4, {})[0] == 200
    assert double_by_grpc(secured, files, 4) == 6.0


def double_by_grpc(
    server: RunningServer, files: Files, numbers: int, *, as_caller: bool = False
) -> float:
    """The last of the doubled numbers."""
    certificate, key = files.caller
    with tritonclient.grpc.InferenceServerClient(
        server.grpc,
        ssl=True,
        root_certificates=str(files.authority),
        private_key=str(key) if as_caller else None,
        certificate_chain=str(certificate) if as_caller else None,
    ) as client:
        tensor = tritonclient.grpc.InferInput("x", [1, numbers], "FP32")
        tensor.set_data_from_numpy(np.arange(numbers, dtype=np.float32)[np.newaxis])
        answer = client.infer("double", [tensor], client_timeout=20)
        return float(answer.as_numpy("y")[0, -1])


@pytest.mark.parametrize("numbers", [4, 500_000], ids=["small", "large"])
def test_grpc_is_answered(secured: RunningServer, files: Files, numbers: int) -> None:
    assert double_by_grpc(secured, files, numbers) == 2.0 * (numbers - 1)


def test_tritonclient_speaks_https(secured: RunningServer, files: Files) -> None:
    with tritonclient.http.InferenceServerClient(
        secured.http, ssl=True, ssl_options={"ca_certs": str(files.authority)}
    ) as client:
        assert client.is_server_ready()
        tensor = tritonclient.http.InferInput("x", [1, 4], "FP32")
        tensor.set_data_from_numpy(np.full((1, 4), 3, np.float32))
        assert client.infer("double", [tensor]).as_numpy("y").tolist() == [[6.0] * 4]


def test_metrics_are_told_without_tls(secured: RunningServer) -> None:
    assert call(secured.metrics_port, "GET", "/metrics")[0] == 200


def test_only_callers_with_a_certificate_come_in(mutual: RunningServer, files: Files) -> None:
    with https(mutual, trusting(files, as_caller=True)) as connection:
        assert ask(connection, 4, {})[0] == 200
    assert double_by_grpc(mutual, files, 4, as_caller=True) == 6.0
    with (
        https(mutual, trusting(files)) as connection,
        pytest.raises(OSError, match=r"(?i)certificate required|reset|EOF|broken pipe|closed"),
    ):
        ask(connection, 4, {})
    with pytest.raises(InferenceServerException):
        double_by_grpc(mutual, files, 4)


def test_half_of_it_and_files_that_do_not_do_are_one_sentence(files: Files, tmp_path: Path) -> None:
    write_model(tmp_path, "double")
    certificate, key = map(str, files.server)
    other_key, text = str(files.caller[1]), tmp_path / "text.pem"
    text.write_text("no PEM\n")
    ports = ("--http-port", "0", "--grpc-port", "0", "--metrics-port", "0")
    for wrong, expected in (
        (("--http-server-cert", certificate), "its key: --http-server-key"),
        (("--http-server-key", key), "its key: --http-server-cert"),
        (("--http-root-cert", certificate), "its key: --http-server-cert"),
        (
            ("--http-server-cert", certificate, "--http-server-key", "nowhere.key"),
            "--http-server-key nowhere.key: No such file or directory",
        ),
        (
            ("--http-server-cert", certificate, "--http-server-key", other_key),
            "KEY_VALUES_MISMATCH",
        ),
        (("--http-server-cert", str(text), "--http-server-key", key), f"{text} and"),
        (("--grpc-server-cert", certificate), "need --grpc-use-ssl true"),
        (("--grpc-use-ssl", "true"), "its key: --grpc-server-cert"),
        (("--grpc-use-ssl-mutual", "true"), "needs --grpc-root-cert"),
        (
            (
                *("--grpc-use-ssl-mutual", "true", "--grpc-root-cert", str(text)),
                *("--grpc-server-cert", certificate, "--grpc-server-key", key),
            ),
            f"--grpc-root-cert {text} has no certificates",
        ),
    ):
        result = run_slipway("serve", "--model-repository", str(tmp_path), *ports, *wrong)
        assert result.returncode == 1, wrong
        assert expected in result.stderr, (wrong, result.stderr)
        assert result.stderr.startswith("Error: ")
        assert result.stderr.count("\n") == 1
