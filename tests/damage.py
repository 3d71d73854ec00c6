"""Files of weights and stores of forecasts, damaged in every way that disks, networks and enemies know."""

from __future__ import annotations

import io
import json
import os
import pickle
import shutil
import socket
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

Damage = Callable[[Path], object]
NONSENSE = (None, True, -1, 10**30, 1e300, float("nan"), "", "x" * 100, [], {}, [[[]]], {"a": {"b": None}})


class Bomb:
    """What a pickle runs when it is opened: it would leave a file behind."""

    def __init__(self, mark: str) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple:
        return Path.touch, (Path(self.mark),)


# ------------------------------------------------------------------------------------------------------ checkpoints


def checkpoints() -> dict[str, Damage]:
    """What to do to a file of weights, by name; ``mark`` beside it exists if anything in it was run."""
    found: dict[str, Damage] = {}
    for family in (bytes_changed, headers_changed, descriptions_changed, other_things):
        for name, damage in family():
            key = f"{family.__name__}: {name}"
            assert key not in found, key
            found[key] = damage
    return found


def raw(change: Callable[[bytes], bytes]) -> Damage:
    return lambda path: path.write_bytes(change(path.read_bytes()))


def header(change: Callable[[dict], object]) -> Damage:
    """Rewrite the header of a safetensors file; what stands behind it stays."""

    def damage(path: Path) -> None:
        data = path.read_bytes()
        end = 8 + int.from_bytes(data[:8], "little")
        held = json.loads(data[8:end])
        text = change(held)
        text = (json.dumps(held if text is None else text) if not isinstance(text, str) else text).encode()
        path.write_bytes(len(text).to_bytes(8, "little") + text + data[end:])

    return damage


def first(held: dict, place: int = 0) -> dict:
    return held[[name for name in held if name != "__metadata__"][place]]


def bytes_changed() -> Iterator[tuple[str, Damage]]:
    for i in range(20):
        yield f"cut at {i}/20", raw(lambda b, i=i: b[: len(b) * i // 20])
        yield f"a bit flipped at {i}/20", raw(lambda b, i=i: flipped(b, len(b) * i // 20))
        yield f"a bit of the header flipped at {i}/20", raw(lambda b, i=i: flipped(b, 8 + (_end(b) - 8) * i // 20))
    for name, length in {
        "0": 0,
        "1": 1,
        "all": 2**64 - 1,
        "more than there is": 2**31,
        "100 MB": 10**8,
        "negative": 2**63,
    }.items():
        yield f"header's length {name}", raw(lambda b, n=length: n.to_bytes(8, "little") + b[8:])
    yield "zeros", raw(lambda b: bytes(len(b)))
    yield "ones", raw(lambda b: b"\xff" * len(b))
    yield "a page of zeros", raw(lambda b: b[: len(b) // 2] + bytes(4096) + b[len(b) // 2 + 4096 :])
    yield "a byte too many", raw(lambda b: b + b"\0")
    yield "twice", raw(lambda b: b + b)
    yield "backwards", raw(lambda b: b[::-1])
    yield "two weights exchanged", raw(lambda b: b[:-64] + b[-32:] + b[-64:-32])


def _end(data: bytes) -> int:
    return 8 + int.from_bytes(data[:8], "little")


def flipped(data: bytes, place: int, bit: int = 2) -> bytes:
    return data[:place] + bytes([data[place] ^ 1 << bit]) + data[place + 1 :]


def headers_changed() -> Iterator[tuple[str, Damage]]:
    def entry(**change: object) -> Damage:
        return header(lambda h: first(h).update(change))

    for offsets in ([-8, 8], [8, 0], [0, 2**63], [0, 10**30], [0], [], None, "0-8", [0.5, 8.5], [2**40, 2**40 + 8]):
        yield f"offsets {offsets}", entry(data_offsets=offsets)
    for dtype in ("F16", "I64", "BOOL", "F8_E4M3", "C64", "Q9", "", None, 3, "object"):
        yield f"type {dtype!r}", entry(dtype=dtype)
    for shape in ([0], [-1], [10**18], [10**9, 10**9, 10**9], ["3"], None, "all", [1.5], [1] * 1000):
        yield f"shape {str(shape)[:30]}", entry(shape=shape)
    yield "overlapping", header(lambda h: first(h, 1).update(data_offsets=first(h)["data_offsets"]))
    yield "no entries", header(lambda h: {"__metadata__": h["__metadata__"]})
    yield "an entry missing", header(lambda h: h.pop(next(n for n in h if n != "__metadata__")) and None)
    for name in ("../../../etc/passwd", "/etc/passwd", "..\\..\\x", "a\0b", "", "x" * 10000, "network.__class__", "💥"):
        yield f"a tensor called {name[:20]!r}", header(lambda h, n=name: h.update({n: dict(first(h))}))
        yield f"a tensor renamed to {name[:20]!r}", header(lambda h, n=name: h.update({n: h.pop("grid.latitude")}))
    for name, text in {
        "nonsense": "{", "a list": "[]", "a string": '"x"', "null": "null", "nothing": "", "spaces": " " * 1000,
        "deep": '{"a":' * 20000 + "1" + "}" * 20000, "deep lists": "[" * 50000 + "]" * 50000, "twice": '{"a":1,"a":2}',
    }.items():  # fmt: skip
        yield f"{name} as the header", header(lambda h, t=text: t)
    for value in NONSENSE:
        yield f"{str(value)[:12]!r} as metadata", header(lambda h, v=value: h.update(__metadata__=v))
        yield f"{str(value)[:12]!r} as our metadata", header(lambda h, v=value: h.update(__metadata__={"xmosaic": v}))


def descriptions_changed() -> Iterator[tuple[str, Damage]]:
    def described(change: Callable[[dict], object]) -> Damage:
        def apply(h: dict) -> None:
            ours = json.loads(h["__metadata__"]["xmosaic"])
            new = change(ours)
            h["__metadata__"]["xmosaic"] = new if isinstance(new, str) else json.dumps(ours)

        return header(apply)

    for key in ("format_version", "model", "digest"):
        yield f"no {key}", described(lambda d, k=key: d.pop(k) and None)
        for value in NONSENSE:
            yield f"{key} {str(value)[:12]!r}", described(lambda d, k=key, v=value: d.update({k: v}))
    for key in ("config", "schema", "provenance"):
        yield f"no {key}", described(lambda d, k=key: d["model"].pop(k) and None)
        for value in NONSENSE:
            yield f"{key} {str(value)[:12]!r}", described(lambda d, k=key, v=value: d["model"].update({k: v}))
    yield "deep", described(lambda d: '{"model":' * 20000 + "1" + "}" * 20000)
    yield "a number of a million digits", described(lambda d: '{"format_version": ' + "9" * 1_000_000 + "}")
    yield "a name that leads elsewhere", described(lambda d: d["model"]["provenance"].update(name="../../x"))


def other_things() -> Iterator[tuple[str, Damage]]:
    def pickled(path: Path) -> None:
        path.write_bytes(pickle.dumps(Bomb(str(path.with_name("mark")))))

    def zipped(path: Path) -> None:
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("../../mark", "escaped")
            archive.writestr("archive/data.pkl", pickle.dumps(Bomb(str(path.with_name("mark")))))
            archive.writestr("archive/bomb", bytes(10_000_000))

    def arrays(path: Path) -> None:
        held = io.BytesIO()
        np.savez(held, state_mean=np.array([Bomb(str(path.with_name("mark")))], dtype=object))
        path.write_bytes(held.getvalue())

    def instead(make: Callable[[Path], object]) -> Damage:
        def damage(path: Path) -> None:
            path.unlink()
            make(path)

        return damage

    def listening(path: Path) -> None:
        with socket.socket(socket.AF_UNIX) as s:
            os.chdir(path.parent)
            s.bind(path.name)

    yield "a pickle with code", pickled
    yield "an archive with code, a bomb and a way out", zipped
    yield "arrays with code", arrays
    yield "text", lambda p: p.write_text("404: Not Found")
    yield "a pointer of git LFS", lambda p: p.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\n")
    yield "a web page", lambda p: p.write_text("<!DOCTYPE html><html>")
    yield "a script", lambda p: p.write_text(f"__import__('pathlib').Path({str(p.with_name('mark'))!r}).touch()")
    yield "nothing", lambda p: p.write_bytes(b"")
    yield "gone", Path.unlink
    yield "a folder", instead(Path.mkdir)
    yield "a link to itself", instead(lambda p: p.symlink_to(p))
    yield "a link to nothing", instead(lambda p: p.symlink_to(p.with_name("nowhere")))
    yield "a device", instead(lambda p: p.symlink_to("/dev/zero"))
    yield "a pipe that nobody writes to", instead(os.mkfifo)
    yield "a socket", instead(listening)


# ----------------------------------------------------------------------------------------------------------- stores


def stores() -> dict[str, Damage]:
    """What to do to the folder of a whole forecast, by name."""
    found: dict[str, Damage] = {}
    for family in (files_lost, bits_turned, metadata_damaged, leftovers, foreign):
        for name, damage in family():
            key = f"{family.__name__}: {name}"
            assert key not in found, key
            found[key] = damage
    return found


DATA = ("2m_temperature", "geopotential")  # with levels and without; more are more of the same
COORDS = ("time", "number", "prediction_timedelta", "level", "latitude", "longitude", "valid_time")
RECORD = ("xmosaic_record/written", "xmosaic_record/inputs")


def pieces(path: Path, name: str) -> list[Path]:
    return sorted(p for p in (path / name / "c").rglob("*") if p.is_file()) if (path / name / "c").is_dir() else []


def files_lost() -> Iterator[tuple[str, Damage]]:
    ways: dict[str, Damage] = {
        "deleted": Path.unlink,
        "empty": lambda p: p.write_bytes(b""),
        "cut": lambda p: p.write_bytes(p.read_bytes()[: p.stat().st_size // 2]),
        "noise": lambda p: p.write_bytes(np.random.default_rng(0).bytes(p.stat().st_size)),
        "a folder": lambda p: (p.unlink(), p.mkdir()),
    }
    for name in (*DATA, *COORDS, *RECORD):
        for way, damage in ways.items():
            yield f"a piece of {name} {way}", lambda p, n=name, d=damage: d(pieces(p, n)[0])
    for name in (*DATA, *COORDS, *RECORD, "xmosaic_record"):
        yield f"{name} gone", lambda p, n=name: shutil.rmtree(p / n)
    yield "all pieces gone", lambda p: [f.unlink() for n in DATA for f in pieces(p, n)]


def bits_turned() -> Iterator[tuple[str, Damage]]:
    def turned(name: str, part: float, bit: int) -> Damage:
        def damage(path: Path) -> None:
            file = pieces(path, name)[-1]
            held = file.read_bytes()
            file.write_bytes(flipped(held, int(part * (len(held) - 1)), bit))

        return damage

    for name in DATA:
        for i in range(25):
            yield f"a bit of a piece of {name} at {i}/24", turned(name, i / 24, i % 8)
    for name in (*COORDS, *RECORD):
        for i in range(3):
            yield f"a bit of {name} at {i}/2", turned(name, i / 2, 3 * i % 8)


def metadata_damaged() -> Iterator[tuple[str, Damage]]:
    def edited(where: str, change: Callable[[dict], object]) -> Damage:
        def damage(path: Path) -> None:
            file = path / where / "zarr.json"
            held = json.loads(file.read_text())
            change(held)
            file.write_text(json.dumps(held))

        return damage

    for where in ("", "geopotential", "latitude", "time", "xmosaic_record", "xmosaic_record/written"):
        label = where or "the root"
        yield f"{label}: no zarr.json", lambda p, w=where: (p / w / "zarr.json").unlink()
        for name, text in {"empty": "", "nonsense": "{", "a list": "[]", "null": "null", "bytes": "\0\0"}.items():
            yield f"{label}: {name}", lambda p, w=where, t=text: (p / w / "zarr.json").write_text(t)
        yield f"{label}: version 9", edited(where, lambda h: h.update(zarr_format=9))
        yield f"{label}: another kind", edited(where, lambda h: h.update(node_type="tree"))
        yield f"{label}: attributes are text", edited(where, lambda h: h.update(attributes="x"))
    for value in (NONSENSE[0], NONSENSE[2], "x", [], {}):
        yield f"record: format {value!r}", edited("xmosaic_record", lambda h, v=value: h["attributes"].update(format=v))
        yield (
            f"record: settings {value!r}",
            edited("xmosaic_record", lambda h, v=value: h["attributes"].update(settings=v)),
        )
    yield "record: not ready", edited("xmosaic_record", lambda h: h["attributes"].update(ready=False))
    yield "record: no attributes", edited("xmosaic_record", lambda h: h.update(attributes={}))
    yield "record: another seed", edited("xmosaic_record", lambda h: h["attributes"]["settings"].update(seed="9"))
    yield "record: another shape", edited("xmosaic_record/written", lambda h: h.update(shape=[9, 9, 9]))
    yield "record: one dimension", edited("xmosaic_record/written", lambda h: h.update(shape=[3]))
    yield "record: another type", edited("xmosaic_record/written", lambda h: h.update(data_type="float64"))
    yield "geopotential: another shape", edited("geopotential", lambda h: h.update(shape=[1, *h["shape"][1:]]))
    yield "geopotential: huge", edited("geopotential", lambda h: h.update(shape=[10**12, *h["shape"][1:]]))
    yield "geopotential: another type", edited("geopotential", lambda h: h.update(data_type="int9"))
    yield "geopotential: no codecs", edited("geopotential", lambda h: h.update(codecs=[]))
    yield (
        "geopotential: other dimensions",
        edited("geopotential", lambda h: h.update(dimension_names=["a"] * len(h["shape"]))),
    )


def leftovers() -> Iterator[tuple[str, Damage]]:
    yield "a half file", lambda p: (p / "geopotential" / "c" / "0.abc.partial").write_bytes(b"half")
    yield "half files everywhere", lambda p: [(p / n / "x.partial").write_bytes(b"") for n in DATA]
    yield "a stranger's file", lambda p: (p / "notes.txt").write_text("mine")
    yield "a stranger's folder", lambda p: (p / "plots").mkdir()
    yield "rubbish of a desktop", lambda p: (p / ".DS_Store").write_bytes(b"\0\0\0\1Bud1")
    yield "a lock of nobody", lambda p: lock(p).write_text("")
    yield "a lock of nonsense", lambda p: lock(p).write_bytes(b"\xff\xfe{")
    yield "a lock of a list", lambda p: lock(p).write_text("[1, 2]")
    yield "a lock of a dead process", lambda p: lock(p).write_text(json.dumps({"pid": 2**22 + 1, "host": "gone"}))


def lock(path: Path) -> Path:
    return path / "xmosaic_record" / "written" / "lock"


def foreign() -> Iterator[tuple[str, Damage]]:
    def emptied(make: Damage) -> Damage:
        def damage(path: Path) -> None:
            shutil.rmtree(path)
            make(path)

        return damage

    def version2(path: Path) -> None:
        import xarray as xr

        xr.Dataset({"a": ("x", [1.0])}).to_zarr(path, zarr_format=2, consolidated=False)

    def version3(path: Path) -> None:
        import xarray as xr

        xr.Dataset({"a": ("x", [1.0])}).to_zarr(path, zarr_format=3, consolidated=False)

    yield "another Zarr store", emptied(version3)
    yield "another Zarr store of version 2", emptied(version2)
    yield "a file", emptied(lambda p: p.write_text("x"))
    yield "a folder of files", emptied(lambda p: (p.mkdir(), (p / "a.txt").write_text("x")))
    yield "a link to itself", emptied(lambda p: p.symlink_to(p))
    yield "a pipe", emptied(os.mkfifo)
    yield "a netCDF file", emptied(lambda p: p.write_bytes(b"CDF\x01" + bytes(28)))
    yield "an empty folder", emptied(Path.mkdir)
    yield "gone", emptied(lambda p: None)
