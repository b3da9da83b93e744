# SPDX-License-Identifier: Apache-2.0
"""A registry of images on loopback: the distribution protocol and docker's token protocols over real HTTP, for one image of tests."""

from __future__ import annotations

import base64
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs


class Registry:
    """Serves one layout; wants a token for `user` unless it is `public`."""

    def __init__(self, files: dict[str, bytes], *, public: bool = False) -> None:
        outer = self
        self.files = files
        self.asked: list[tuple[str, str]] = []

        class Handler(BaseHTTPRequestHandler):
            def log_message(self, *words: object) -> None:
                pass

            def do_POST(self) -> None:
                form = parse_qs(self.rfile.read(int(self.headers["Content-Length"])).decode())
                outer.asked.append((self.path, ""))
                if (
                    form.get("refresh_token") != ["1dentity"]
                    or form["grant_type"] != ["refresh_token"]
                    or form["scope"] != ["repository:team/web:pull"]
                ):
                    return self.answer(401, b"{}")
                return self.answer(200, b'{"access_token":"t0ken"}')

            def do_GET(self) -> None:
                given = self.headers.get("Authorization", "")
                outer.asked.append((self.path, given))
                if self.path.startswith("/token"):
                    if given != "Basic " + base64.b64encode(b"user:secret").decode():
                        return self.answer(401, b"{}")
                    return self.answer(200, b'{"token":"t0ken"}')
                if self.path.startswith("/elsewhere/"):
                    return self.answer(200, files[f"blobs/sha256/{self.path.rpartition('/')[2]}"])
                if given != "Bearer t0ken" and not public:
                    return self.answer(
                        401,
                        b"",
                        **{
                            "WWW-Authenticate": f'Bearer realm="{outer.address}/token",service="s",scope="repository:team/web:pull"'
                        },
                    )
                if self.path == "/v2/team/web/manifests/1":
                    named = json.loads(files["index.json"])["manifests"][0]["digest"]
                    return self.answer(200, files[f"blobs/sha256/{named[7:]}"])
                blob = files.get(f"blobs/sha256/{self.path.rpartition(':')[2]}")
                if blob is None:
                    return self.answer(404, b"")
                return self.answer(
                    307, b"", Location=f"http://localhost:{outer.port}/elsewhere/{self.path.rpartition(':')[2]}"
                )

            def answer(self, code: int, body: bytes, **headers: str) -> None:
                self.send_response(code)
                for name, value in headers.items():
                    self.send_header(name, value)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.port = self._server.server_address[1]
        self.address = f"http://127.0.0.1:{self.port}"
        self._thread = threading.Thread(target=self._server.serve_forever)
        self._thread.start()

    def close(self) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()
