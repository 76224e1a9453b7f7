"""LitServe with the same teacher: the way its documentation shows, images as base64 in JSON, batches of 32."""

import base64
import sys

import litserve
import numpy as np
import torch
from serving_side import BATCH, CLASSES, SIZE, STATISTICS, TEACHER

from shared.teacher import load_teacher


class PeerAPI(litserve.LitAPI):
    """Answers one image per request; LitServe forms the batches."""

    def setup(self, device: str) -> None:
        """Load the teacher in the worker's process."""
        torch.set_num_threads(1)
        self.teacher = load_teacher(TEACHER, classes=CLASSES, normalisation=STATISTICS)

    def decode_request(self, request: dict[str, str]) -> np.ndarray:
        """One image uint8 [H, W, 3]."""
        return np.frombuffer(base64.b64decode(request["image"]), dtype=np.uint8).reshape(SIZE, SIZE, 3)

    def predict(self, images: np.ndarray) -> np.ndarray:
        """Logits float32 [B, C]."""
        return self.teacher.answer(list(images))["logits"]

    def encode_response(self, logits: np.ndarray) -> dict[str, str]:
        """One answer."""
        return {"logits": base64.b64encode(logits.tobytes()).decode()}


if __name__ == "__main__":
    api = PeerAPI(max_batch_size=BATCH, batch_timeout=0.002)
    server = litserve.LitServer(api, accelerator="cpu", fast_queue=True)
    server.run(
        host="127.0.0.1", port=int(sys.argv[1]), num_api_servers=1, log_level="error", generate_client_file=False
    )
