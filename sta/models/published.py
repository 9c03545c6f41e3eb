"""Where published weights lie, for the networks; see `sta.config.published`."""

from sta.config.published import MODELS as MODELS
from sta.config.published import locate as locate
