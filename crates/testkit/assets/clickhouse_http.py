"""ClickHouse's HTTP interface over chDB, the engine as a Python module: `python clickhouse_http.py PORT DATADIR`.

One engine, one query at a time, so sessions are not isolated from each other and nothing can be cancelled. The user is
`default` without a password; every other is refused as the server would. Native block compression (compress=1,
decompress=1) is refused; bodies may be compressed by Content-Encoding.
"""

import base64
import http.server
import json
import os
import re
import sys
import tempfile
import threading
import urllib.parse
import uuid

from chdb import session

NOT_SETTINGS = {
    "query", "database", "user", "password", "session_id", "session_timeout", "session_check", "query_id",
    "default_format", "wait_end_of_query", "buffer_size", "compress", "decompress", "role", "quota_key",
}
STATUS = {
    36: 400, 43: 400, 46: 404, 47: 404, 53: 400, 60: 404, 62: 400, 81: 404, 82: 404, 115: 404, 158: 400, 192: 403,
    193: 403, 194: 403, 241: 500, 497: 403, 516: 403,
}
COMPRESSION = {"": "none", "identity": "none", "gzip": "gzip", "zstd": "zstd", "lz4": "lz4", "br": "br", "deflate": "deflate"}
# Data follows an INSERT in the body; the words between the table and the format may be a column list and settings.
INSERT = re.compile(
    rb"\s*(?P<head>INSERT\s+INTO\s.+?)(?P<settings>\sSETTINGS\s.+?)?\s+(?P<format>FORMAT\s+\w+|VALUES)(?P<rest>[\s;].*|)\Z",
    re.IGNORECASE | re.DOTALL,
)
QUERY_INSIDE = re.compile(rb"\s(SELECT|WITH)\s", re.IGNORECASE)

data = sys.argv[2]
engine = session.Session(data)
lock = threading.Lock()


class Refused(Exception):
    def __init__(self, code, text):
        super().__init__(f"Code: {code}. DB::Exception: {text}")


def quote(text):
    return "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"


def execute(query, body, encoding, options, parameters, settings):
    """Runs one query; `body` is data for an INSERT, or more of the query's text."""
    if encoding not in COMPRESSION:
        raise Refused(48, f"Content-Encoding {encoding} (NOT_IMPLEMENTED)")
    place = None
    whole = query if query.strip() else body
    payload = body if query.strip() else None
    if payload is None and COMPRESSION[encoding] != "none":
        raise Refused(48, "a compressed query text (NOT_IMPLEMENTED)")
    insert = INSERT.match(whole)
    if insert and not QUERY_INSIDE.search(insert["head"]):
        inline = re.sub(rb"\A[ \t]*(\r?\n)?", b"", insert["rest"]) if payload is None else payload
        if inline:
            form = insert["format"].decode()
            place = tempfile.NamedTemporaryFile(dir=data, prefix="body-", delete=False)
            place.write(inline)
            place.close()
            form = "FORMAT Values" if form.upper() == "VALUES" else form
            compression = COMPRESSION[encoding] if payload is not None else "none"
            sql = "{} FROM INFILE {} COMPRESSION {}{} {}".format(
                insert["head"].decode(), quote(place.name), quote(compression),
                (insert["settings"] or b"").decode(), form,
            )
        else:
            sql = whole.decode()
    else:
        sql = whole.decode() if payload is None else (query + b"\n" + payload).decode()
    with lock:
        done = []
        try:
            engine.query("USE `" + options.get("database", "default").replace("`", "``") + "`")
            for name, value in settings.items():
                if not re.fullmatch(r"\w+", name):
                    raise Refused(115, f"Unknown setting {quote(name)}. (UNKNOWN_SETTING)")
                engine.query(f"SET {name} = {quote(value)}")
                done.append(name)
            form = options.get("default_format", "TabSeparated")
            return engine.query(sql, form, params=parameters or None)
        finally:
            for name in done:
                engine.query(f"SET {name} = DEFAULT")
            if place:
                os.unlink(place.name)


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, form, *values):
        sys.stderr.write(form % values + "\n")

    def body(self):
        if self.headers.get("Transfer-Encoding", "").lower() != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        pieces = []
        while size := int(self.rfile.readline().split(b";")[0], 16):
            pieces.append(self.rfile.read(size))
            self.rfile.readline()
        while self.rfile.readline().strip():
            pass
        return b"".join(pieces)

    def answer(self, status, content, headers=()):
        self.send_response(status)
        for name, value in headers:
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def check_user(self, options):
        user = options.get("user") or self.headers.get("X-ClickHouse-User") or "default"
        password = options.get("password") or self.headers.get("X-ClickHouse-Key") or ""
        authorization = self.headers.get("Authorization", "")
        if authorization.startswith("Basic "):
            user, _, password = base64.b64decode(authorization[6:]).decode().partition(":")
        if (user, password) != ("default", ""):
            raise Refused(
                516,
                f"{user}: Authentication failed: password is incorrect, or there is no user with such name. "
                "(AUTHENTICATION_FAILED)",
            )

    def do_GET(self):
        address = urllib.parse.urlsplit(self.path)
        body = self.body()
        if address.path == "/ping":
            return self.answer(200, b"Ok.\n")
        options = dict(urllib.parse.parse_qsl(address.query, keep_blank_values=True))
        for header, option in (("X-ClickHouse-Database", "database"), ("X-ClickHouse-Format", "default_format")):
            if self.headers.get(header):
                options[option] = self.headers[header]
        parameters = {name[6:]: value for name, value in options.items() if name.startswith("param_")}
        settings = {
            name: value for name, value in options.items() if name not in NOT_SETTINGS and not name.startswith("param_")
        }
        query_id = options.get("query_id") or str(uuid.uuid4())
        headers = [("X-ClickHouse-Query-Id", query_id), ("X-ClickHouse-Server-Display-Name", "chdb"), ("X-ClickHouse-Timezone", "UTC")]
        try:
            self.check_user(options)
            if options.get("compress", "0") != "0" or options.get("decompress", "0") != "0":
                raise Refused(48, "native block compression (NOT_IMPLEMENTED)")
            encoding = self.headers.get("Content-Encoding", "").lower()
            query = options.get("query", "").encode()
            result = execute(query, body, encoding, options, parameters, settings)
        except Exception as error:
            text = str(error)
            found = re.match(r"Code: (\d+)\.", text)
            code = int(found[1]) if found else 1002
            headers += [("X-ClickHouse-Exception-Code", str(code)), ("Content-Type", "text/plain; charset=UTF-8")]
            return self.answer(STATUS.get(code, 500), text.encode() + b"\n", headers)
        summary = {
            "read_rows": str(result.rows_read()),
            "read_bytes": str(result.bytes_read()),
            "written_rows": str(result.rows_written()),
            "written_bytes": str(result.bytes_written()),
            "elapsed_ns": str(int(result.elapsed() * 1e9)),
        }
        self.answer(200, result.bytes(), [*headers, ("X-ClickHouse-Summary", json.dumps(summary))])

    do_POST = do_HEAD = do_GET


class Server(http.server.ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128


Server(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()
