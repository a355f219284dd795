import pytest

from octavo.config import EngineConfig
from octavo.errors import ConfigError


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"max_num_seq": 4}, "did you mean 'max_num_seqs'"),
        ({"zzz": 4}, "valid ones are"),
        ({"block_size": 0}, "block_size must be a whole number of at least 1"),
        ({"threads": 1.5}, "threads must be"),
        ({"dtype": "int3"}, "dtype must be auto, float32"),
        ({"target_itl": 0}, "target_itl"),
        ({"gpu_memory_utilization": 1.5}, "gpu_memory_utilization"),
    ],
)
def test_wrong_settings_are_named(settings, message):
    with pytest.raises(ConfigError, match=message):
        EngineConfig.from_settings(settings)


def test_settings_become_fields():
    assert EngineConfig.from_settings({"max_num_seqs": 4}).max_num_seqs == 4
