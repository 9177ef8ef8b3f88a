"""Which properties of an image tell how much the dearest expert gains on it?"""

from trt_moe.study.study import Study, study

__all__ = ["Study", "study"]
