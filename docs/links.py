"""Every address of the documentation, README, docstrings and notebooks, asked once. A maintainer's step, with network.

    python docs/links.py             # addresses that lead nowhere; exit 1 if there are any
    python docs/links.py --titles    # and what each DOI belongs to, to be read beside the text that names it
    python docs/links.py --list      # what would be asked, and where it stands; asks nothing

DOIs are asked of doi.org for their metadata, not of publishers, who refuse programs. One request a second to a host.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote, unquote, urldefrag, urlsplit

ROOT = Path(__file__).parents[1]
READ = (".md", ".py", ".ipynb", ".cff", ".toml", ".yml", ".yaml", ".html", ".js", ".svg")
FOLDERS = ("docs", "examples", "xmosaic", ".github")
LEFT_OUT = {"_build", "generated", "notebooks", "__pycache__", ".ipynb_checkpoints"}
# names that no one is meant to open: namespaces, examples of hosts, this machine, what begins a longer address
NAMES = re.compile(r"https?://(www\.w3\.org/2000/svg|localhost|127\.|[\w.]*example\.|download\.pytorch\.org/whl/)")
AGENT = "xmosaic-docs-links/1 (checks links once before a release; +https://doi.org/10.48550/arXiv.2604.16429)"
METADATA = "application/vnd.citationstyles.csl+json"
SERIOUS = ("broken", "no answer")


@dataclass(frozen=True)
class Answer:
    """What came of asking: "good", "moved", "refused", "broken" or "no answer", and what is to be known of it."""

    verdict: str
    text: str = ""


def addresses(text: str) -> Iterator[str]:
    """Addresses in a text; each DOI as that of doi.org, once, however it is written."""
    for raw in re.findall(r"https?://[^\s\"'`\]{}|\\]+", text):
        address = _ended(raw)
        doi = re.match(r"https?://(?:dx\.)?doi\.org/(10\..+)", address)
        yield _of_doi(unquote(doi[1])) if doi else urldefrag(address).url
    for raw in re.findall(r"\bdoi:\s*(?:\[)?(10\.\d{4,}/[^\s\"'`\]\\]+)", text, flags=re.IGNORECASE):
        yield _of_doi(_ended(raw))


def _of_doi(doi: str) -> str:
    return "https://doi.org/" + quote(doi, safe="/:;().")


def _ended(raw: str) -> str:
    """Without what the sentence, the brackets around it or a tag add at its end."""
    while raw:
        shut = (")", "(") if raw[-1] == ")" else (">", "<")
        added = raw[-1] in ".,;:*!?" or (raw[-1] in ")>" and raw.count(shut[0]) > raw.count(shut[1]))
        if not added:
            break
        raw = raw[:-1]
    tag = re.search(r"</?[a-z]+>?$", raw)
    return raw[: tag.start()] if tag else raw


def files(root: Path = ROOT) -> Iterator[Path]:
    """What is read: the top folder's files, and those of the folders, less what is built."""
    places = [*root.glob("*"), *(path for folder in FOLDERS for path in (root / folder).rglob("*"))]
    for path in sorted(places):
        parts = path.relative_to(root).parts
        if path.is_file() and path.suffix in READ and not LEFT_OUT.intersection(parts) and path != Path(__file__):
            yield path


def found(root: Path = ROOT) -> dict[str, list[str]]:
    """Address → the files that it stands in."""
    where: dict[str, list[str]] = {}
    for path in files(root):
        for address in addresses(_text(path)):
            name = path.relative_to(root).as_posix()
            if not NAMES.match(address) and name not in where.setdefault(address, []):
                where[address].append(name)
    return dict(sorted(where.items()))


def _text(path: Path) -> str:
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".ipynb":
        return "\n".join("".join(cell["source"]) for cell in json.loads(text)["cells"])
    return text


def ask(address: str, timeout: float = 20.0) -> Answer:
    """One GET; redirects are followed, and told where they are for good."""
    is_doi = urlsplit(address).netloc == "doi.org"
    headers = {"User-Agent": AGENT, "Accept": METADATA if is_doi else "*/*"}
    trail = _Trail()
    try:
        with urllib.request.build_opener(trail).open(
            urllib.request.Request(address, headers=headers), timeout=timeout
        ) as answer:
            if is_doi:
                return Answer("good", _title(answer.read(2_000_000)))
            return Answer("moved", f"for good, to {answer.url}") if trail.for_good else Answer("good")
    except urllib.error.HTTPError as error:
        # who refuses programs may well have the page
        refused = error.code in (401, 403, 405, 406, 418, 429, 503)
        return Answer("refused" if refused else "broken", f"HTTP {error.code}")
    except (OSError, ValueError) as error:
        reason = getattr(error, "reason", error)
        return Answer("no answer", str(reason) or type(error).__name__)


class _Trail(urllib.request.HTTPRedirectHandler):
    for_good = False

    def redirect_request(self, req, fp, code, msg, headers, newurl):  # type: ignore[no-untyped-def]
        self.for_good |= code in (301, 308) and newurl.rstrip("/") != req.full_url.rstrip("/")
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _title(data: bytes) -> str:
    """First author, year and title of a DOI's metadata; nothing where the answer is of another kind."""
    try:
        about = json.loads(data)
        year = about.get("issued", {}).get("date-parts", [[""]])[0][0]
        names = [each.get("family") or each.get("literal", "") for each in about.get("author", [])]
        title = about.get("title", "")
        return " ".join(str(x) for x in (*names[:1], year, title if isinstance(title, str) else title[0]) if x)
    except (ValueError, AttributeError, LookupError):
        return ""


def ask_all(wanted: Iterable[str], pause: float = 1.0, timeout: float = 20.0) -> Iterator[tuple[str, Answer]]:
    """Each address once; between two requests to one host at least `pause` seconds."""
    last: dict[str, float] = {}
    for address in wanted:
        host = urlsplit(address).netloc
        time.sleep(max(0.0, last.get(host, -pause) + pause - time.monotonic()) if host in last else 0.0)
        answer = ask(address, timeout)
        last[host] = time.monotonic()
        yield address, answer


def main(arguments: list[str] | None = None) -> int:
    """Print what isn't good; 1 if anything is broken or doesn't answer."""
    parser = argparse.ArgumentParser(description="Ask every address of the documentation once.")
    parser.add_argument("--list", action="store_true", help="print the addresses and ask nothing")
    parser.add_argument("--titles", action="store_true", help="print what each DOI belongs to")
    parser.add_argument("--root", type=Path, default=ROOT, help="the checkout")
    parser.add_argument("--pause", type=float, default=1.0, help="seconds between requests to one host")
    parser.add_argument("--timeout", type=float, default=20.0, help="seconds to wait for an answer")
    options = parser.parse_args(arguments)
    where = found(options.root)
    if options.list:
        print("\n".join(f"{address}  {', '.join(files)}" for address, files in where.items()))
        return 0
    counts: dict[str, int] = {}
    for address, answer in ask_all(where, options.pause, options.timeout):
        counts[answer.verdict] = counts.get(answer.verdict, 0) + 1
        if answer.verdict != "good":
            print(
                f"{answer.verdict:9}  {address}\n           {answer.text}; in {', '.join(where[address])}", flush=True
            )
        elif options.titles and answer.text:
            print(f"{'good':9}  {address}\n           {answer.text}", flush=True)
    print(f"{len(where)} addresses: " + ", ".join(f"{n} {verdict}" for verdict, n in sorted(counts.items())))
    return int(any(counts.get(verdict) for verdict in SERIOUS))


if __name__ == "__main__":
    sys.exit(main())
