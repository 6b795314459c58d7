"""The judge keeps what every metric promises, by the embedded model."""

import pytest
from conftest import REPOSITORY, small_config
from darkroom.config.load import load_config
from darkroom.metrics.judge import JudgeMetric
from darkroom.metrics.rubric import load_rubric
from metric_contract import MetricContract


class TestJudge(MetricContract):
    @pytest.fixture(scope="class")
    def section(self, tmp_path_factory):
        rows = tmp_path_factory.mktemp("rows") / "prompts.jsonl"
        rows.write_text("{}\n")
        config = small_config(prompts=str(rows), judge={"engine": "transformers"})
        return load_config(config, [REPOSITORY]).judge

    @pytest.fixture(scope="class")
    def metric(self, section):
        return JudgeMetric(section, load_rubric(section.rubric))

    @pytest.fixture(scope="class")
    def changed(self, section):
        return JudgeMetric(section.model_copy(update={"max_pixels": 4096}), load_rubric(section.rubric))
