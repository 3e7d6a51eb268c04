"""Reading `config.pbtxt`, Triton's model configuration and the only one Slipway has.

It is parsed with the protobuf classes that `tritonclient` ships. A field that Slipway does not
honour refuses to load with its name, so no setting is ever silently without effect.
"""

from serving.pbtxt.reader import CONFIG_FILE, read_config, read_override, read_text
from serving.pbtxt.scheduling import MAX_PRIORITY_LEVELS

__all__ = ["CONFIG_FILE", "MAX_PRIORITY_LEVELS", "read_config", "read_override", "read_text"]
