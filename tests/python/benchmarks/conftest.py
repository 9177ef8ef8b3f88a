from tests.support.tensorrt_fixtures import tensorrt  # noqa: F401
