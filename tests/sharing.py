"""Share the tests out among workers: those that share what is slow to make, or measure time or memory, go to one."""
import pytest

TOGETHER = ("browser/", "training/test_memory", "training/test_resume", "tools/test_offline_kit", "model/test_base_model", "notebooks/test_gguf",
            "tools/test_rendered_edition")


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    """Share the tests out by TOGETHER; xdist_group, which is for that, has no effect with pytest 9.2."""
    from xdist.scheduler import LoadScopeScheduling

    class Together(LoadScopeScheduling):
        def _split_scope(self, nodeid):
            return next((part for part in TOGETHER if part in nodeid), nodeid)

    return Together(config, log)
