"""OpenVINO GenAI's continuous batching, on the model as optimum converts it, in float32."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import openvino
import openvino_genai
from optimum.exporters.openvino import main_export

from peers.protocol import Answer, Job, Settings, serve

KV_GIGABYTES = 2


class OpenVinoBatching:
    """The model is converted once, into the peer's own folder."""

    def __init__(self, settings: Settings) -> None:
        scheduler = openvino_genai.SchedulerConfig()
        scheduler.cache_size = KV_GIGABYTES
        properties = {"INFERENCE_NUM_THREADS": settings.threads, "INFERENCE_PRECISION_HINT": "f32"}
        self.pipeline = openvino_genai.ContinuousBatchingPipeline(
            str(_converted(settings.model)), scheduler, "CPU", properties
        )

    def run(self, job: Job) -> Answer:
        """Hand over all prompts at once."""
        config = openvino_genai.GenerationConfig()
        config.max_new_tokens = job.num_tokens
        config.ignore_eos = True
        config.do_sample = False
        tensors = [openvino.Tensor(np.array([prompt], dtype=np.int64)) for prompt in job.prompts]
        results = self.pipeline.generate(tensors, [config] * len(tensors))
        return Answer([list(result.m_generation_ids[0]) for result in results])


def _converted(model: str) -> Path:
    folder = Path(os.environ["LORAMUX_PEER_HOME"]) / "models" / Path(model).name
    if not (folder / "openvino_model.bin").is_file():
        main_export(model, folder, task="text-generation-with-past", convert_tokenizer=True)
    return folder


if __name__ == "__main__":
    serve(OpenVinoBatching, ("openvino-genai",))
