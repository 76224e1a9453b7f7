"""Random rows: the reader beside NumPy, Zarr and other stores."""

import importlib.util
import statistics
import tempfile
from pathlib import Path

import numpy as np
import zarr
from bench_store import Size, make_store
from bench_turns import Clock, Gather, interval, take_turns

from cache.reader import CacheReader

PEERS = {"lmdb": "pip install '.[bench]'", "tensorstore": "pip install tensorstore", "h5py": "pip install h5py"}
"""Libraries beside ours, with how to get them; the first is what the extra brings."""


def peers(folder: Path, *, size: Size, store: Path) -> dict[str, Gather]:
    """Other libraries that are installed, each over its own copy or the same files; the others are named."""
    found: dict[str, Gather] = {}
    for name, remedy in PEERS.items():
        if importlib.util.find_spec(name) is None:
            print(f"  {name}: skipped, not installed ({remedy})")
        elif name == "tensorstore":
            import tensorstore

            spec = {
                "driver": "zarr3",
                "kvstore": {"driver": "file", "path": str(store)},
                "context": {"cache_pool": {"total_bytes_limit": 2 * 2**30}},
            }
            array = tensorstore.open(spec, read=True).result()
            found["tensorstore, 2 GiB cache"] = lambda rows, array=array: array[rows].read().result()
        elif name == "lmdb":
            found["LMDB, a key per row"] = lmdb_gather(folder / "lmdb", size=size)
        else:
            import h5py

            file = h5py.File(folder / "h5", "w")
            data = file.create_dataset("logits", (size.slots, size.classes), dtype=size.dtype)
            for first, count in size.blocks():
                data[first : first + count] = size.values(first, count)
            # It reads ascending rows only, each once.
            found["h5py, contiguous"] = lambda rows, data=data: data[np.unique(rows)]
    return found


def lmdb_gather(path: Path, *, size: Size) -> Gather:
    """Rows under their number as a key."""
    import lmdb

    store = lmdb.open(str(path), map_size=2**36, sync=False)
    with store.begin(write=True) as transaction:
        for first, count in size.blocks():
            for at, row in enumerate(size.values(first, count)):
                transaction.put((first + at).to_bytes(8, "big"), row.tobytes())

    def gather(rows: np.ndarray) -> np.ndarray:
        out = np.empty((len(rows), size.classes), size.dtype)
        with store.begin(buffers=True) as transaction:
            for at, row in enumerate(rows.tolist()):
                out[at] = np.frombuffer(transaction.get(row.to_bytes(8, "big")), dtype=size.dtype)
        return out

    return gather


def measure_gather(size: Size, *, batches: list[int], rounds: int, clock: Clock) -> None:
    """Random rows, page cache warm."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        store = make_store(folder / "cache", size=size)
        memory = np.concatenate([size.values(first, count) for first, count in size.blocks()])
        memory.tofile(folder / "raw")
        mapped = np.memmap(folder / "raw", dtype=size.dtype, mode="r", shape=memory.shape)
        reader, copied = CacheReader.open(folder / "cache"), CacheReader.open(folder / "cache", in_memory=True)
        array = zarr.open_array(str(store), mode="r")
        print(f"\ngather: {size.slots} slots x {size.classes} {size.dtype}")
        others = peers(folder, size=size, store=store)
        # Both mappings have been walked through once: what is compared is reading, not the first touch of a page.
        for first, count in size.blocks():
            mapped[first : first + count].sum(dtype=np.float32)
            reader.gather(np.arange(first, first + count))
        for batch in batches:
            out = {"logits": np.empty((batch, size.classes), size.dtype)}
            buffer = np.empty_like(out["logits"])
            sides: dict[str, Gather] = {
                "np.memmap m[rows]": lambda rows: mapped[rows],
                "teachonce gather": reader.gather,
                "teachonce gather(out=)": lambda rows, out=out: reader.gather(rows, out=out),
                "teachonce in memory, out=": lambda rows, out=out: copied.gather(rows, out=out),
                "NumPy in memory x[rows]": lambda rows: memory[rows],
                "np.memmap np.take(out=)": lambda rows, buffer=buffer: np.take(mapped, rows, 0, buffer, "clip"),
                "zarr-python orthogonal": lambda rows: array.oindex[rows],
                **others,
            }
            rates = take_turns(sides, rows=np.arange(size.slots), batch=batch, rounds=rounds, clock=clock)
            print(f"  batch {batch:5d}                      rows/s   against np.memmap m[rows]")
            for side, found in rates.items():
                ratios = [mine / base for mine, base in zip(found, rates["np.memmap m[rows]"], strict=True)]
                print(f"    {side:28s}{statistics.median(found):12,.0f} {interval(ratios)}")
            against = [a / b for a, b in zip(rates["teachonce gather"], rates["zarr-python orthogonal"], strict=True)]
            print(f"    teachonce gather / zarr-python {interval(against)} (to reach: 100; against np.memmap: 0.9)")
