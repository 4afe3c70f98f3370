"""What is raised where processes disagree, and whether all have raised it."""

__all__ = ["DistributedError", "in_all", "raised_in_all"]

_MARK = "_jaxsp_raised_in_all_processes"


class DistributedError(RuntimeError):
    """Processes could not come together, disagree, or one of them raised an error."""


def in_all(error: Exception) -> Exception:
    """The error, marked as one that all processes raise."""
    setattr(error, _MARK, True)
    return error


def raised_in_all(error: BaseException | None) -> bool:
    """Whether an error, or one that it was made of, was raised in all processes."""
    while error is not None:
        if getattr(error, _MARK, False):
            return True
        error = error.__cause__ or error.__context__
    return False
