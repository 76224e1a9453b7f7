"""What serving costs: images per second, processor time and latency beside the bare model and LitServe, in one run.

    python benchmarks/serving.py [--rounds 11] [--images 512] [--cached 4096]

All run the same teacher in batches of 32 on one thread, and take turns in an order that changes from round to round:
the model in a loop; teachonce with 32 images per body and with single raw images from 1, 8 and 64 clients, every image
new, answers durable before they are sent; LitServe (pip install '.[bench]') with single images from as many clients.
Then what is cached already. The clients are closed loops on raw sockets in this process. Ratios are taken within a
round. "Front end" is the processor time of a cached image less that of reading its tensor and hashing its pixels: what
HTTP, the guard, the way to the answer and its encoding take.
"""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parent / "serving_parts"))
if __name__ == "__main__":
    from serving_main import main

    main(__doc__)
