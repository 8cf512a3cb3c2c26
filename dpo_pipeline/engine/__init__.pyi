from .executors import (
    Engine as Engine,
    Executor as Executor,
    Function as Function,
    Local as Local,
    executor_of as executor_of,
    in_order as in_order,
    versions as versions,
)
from .progress import Progress as Progress, ProgressCallback as ProgressCallback, Watch as Watch
from .ray_executor import RayExecutor as RayExecutor
