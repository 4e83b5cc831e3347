"""Videos and animations: frames as a stream. The contract alone (decision 0012): what obeys it are plugins."""

__all__ = ()
