"""The exceptions trt-moe raises; every one derives from `TrtMoeError`."""


class TrtMoeError(Exception):
    """Base class of every error that trt-moe raises on purpose."""


class BundleError(TrtMoeError):
    """A bundle is missing, damaged, unsafe or of a schema this version cannot read."""


class InputError(TrtMoeError, ValueError):
    """An argument has the wrong type, dtype, shape, range or name."""


class DataError(TrtMoeError):
    """A data set or an image file cannot be read as what it should be."""


class QueueFullError(TrtMoeError):
    """The router already holds `max_queue` unfinished images; nothing of this request was taken."""


class DeadlineError(TrtMoeError):
    """No expert could answer in the time that the request allowed."""


class RouterClosedError(TrtMoeError):
    """The router was closed before or while the request was made."""


class DeviceError(TrtMoeError):
    """The device asked for is absent, or it failed."""


class EngineBuildError(TrtMoeError):
    """A model could not be compiled into an engine for the device."""


class ModelOutputError(TrtMoeError):
    """A model produced logits that are not finite, or not those its bundle recorded."""


class MissingDependencyError(TrtMoeError, ImportError):
    """An optional package is needed; the message names the command that installs it."""
