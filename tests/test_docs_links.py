"""Does the checker of external links find each address, and tell good, moved, refused, broken and silent ones apart?"""

from __future__ import annotations

import importlib.util
import json
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
_SPEC = importlib.util.spec_from_file_location("links", ROOT / "docs" / "links.py")
links = importlib.util.module_from_spec(_SPEC)
sys.modules["links"] = links  # for its dataclass
_SPEC.loader.exec_module(links)


class Pages(BaseHTTPRequestHandler):
    asked: list[tuple[str, float]]

    def do_GET(self):
        self.server.asked.append((self.path, time.monotonic()))
        if self.path == "/slow":
            time.sleep(1.5)
        status, moved = {"/gone": (404, ""), "/no": (403, ""), "/old": (301, "/good"), "/now": (302, "/good")}.get(
            self.path, (200, "")
        )
        try:
            self.send_response(status)
            if moved:
                self.send_header("Location", moved)
            self.send_header("Content-Length", "0")
            self.end_headers()
        except OSError:  # who asked has gone
            pass

    def log_message(self, *_):
        pass


@pytest.fixture
def server():
    with ThreadingHTTPServer(("127.0.0.1", 0), Pages) as made:
        made.asked = []
        made.daemon_threads = True
        threading.Thread(target=made.serve_forever, args=(0.02,), daemon=True).start()
        made.address = f"http://127.0.0.1:{made.server_port}"
        yield made
        made.shutdown()


@pytest.mark.parametrize(
    ("path", "verdict", "text"),
    [
        ("/good", "good", ""),
        ("/now", "good", ""),
        ("/old", "moved", "/good"),
        ("/gone", "broken", "HTTP 404"),
        ("/no", "refused", "HTTP 403"),
        ("/slow", "no answer", "timed out"),
    ],
)
def test_each_kind_of_answer(server, path, verdict, text):
    answer = links.ask(server.address + path, timeout=0.4)
    assert (answer.verdict, text in answer.text) == (verdict, True)


def test_nobody_there(server):
    server.shutdown()
    server.server_close()
    assert links.ask(server.address, timeout=0.4).verdict == "no answer"


def test_each_is_asked_once_and_with_a_pause(server, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(links, "NAMES", links.re.compile("never"))
    (tmp_path / "docs").mkdir()
    a = server.address
    (tmp_path / "README.md").write_text(f"[one]({a}/good) [two]({a}/gone#part) <{a}/good>")
    (tmp_path / "docs" / "page.md").write_text(f"({a}/gone), {a}/good.")
    assert links.main(["--root", str(tmp_path), "--pause", "0.3"]) == 1
    said = capsys.readouterr().out
    assert f"broken     {a}/gone" in said
    assert "HTTP 404; in README.md, docs/page.md" in said
    assert "2 addresses: 1 broken, 1 good" in said
    assert sorted(path for path, _ in server.asked) == ["/gone", "/good"]
    assert server.asked[1][1] - server.asked[0][1] >= 0.3
    (tmp_path / "docs" / "page.md").unlink()
    (tmp_path / "README.md").write_text(f"{a}/good")
    assert links.main(["--root", str(tmp_path)]) == 0
    assert links.main(["--root", str(tmp_path), "--list"]) == 0
    assert len(server.asked) == 3


def test_addresses_end_where_they_end():
    sici = "10.1175/1520-0493(2001)129<0550:IORHFV>2.0.CO;2"
    as_asked = "https://doi.org/10.1175/1520-0493(2001)129%3C0550:IORHFV%3E2.0.CO;2"
    text = f"""
    (Hamill 2001, doi:{sici}). [it](https://doi.org/{sici}) [same](https://doi.org/{as_asked[16:]}), and
    <https://a.org/b_(c)>, `https://d.org/e`, "https://f.org/g?h=1"; <a href='https://i.org/'>https://j.org/k</a>
    [l](https://m.org/n.html#o).
    """
    assert list(dict.fromkeys(links.addresses(text))) == [
        as_asked,
        "https://a.org/b_(c)",
        "https://d.org/e",
        "https://f.org/g?h=1",
        "https://i.org/",
        "https://j.org/k",
        "https://m.org/n.html",
    ]


def test_titles_of_dois_are_read():
    about = {"author": [{"family": "Górski"}], "issued": {"date-parts": [[2005, 4]]}, "title": "HEALPix: A Framework"}
    assert links._title(json.dumps(about).encode()) == "Górski 2005 HEALPix: A Framework"
    assert links._title(b"<html>") == links._title(b"[]") == ""


def test_every_address_here_has_a_form_that_can_be_asked():
    """DOIs without a stray bracket, encrypted addresses; what they lead to takes the network."""
    where = links.found()
    assert "README.md" in where["https://doi.org/10.48550/arXiv.2604.16429"]
    assert len(where) > 40
    for address, files in where.items():
        assert address.startswith("https://"), (address, files)
        assert address.count("(") == address.count(")"), (address, files)
        if "doi.org/" in address:
            assert links.re.fullmatch(r"https://doi\.org/10\.\d{4,5}/[!-~]*[\w)]", address), (address, files)
