"""Garden, the corpus that is built here from nothing."""

from sta.data.corpora.garden.corpus import GardenSource

__all__ = ["GardenSource"]
