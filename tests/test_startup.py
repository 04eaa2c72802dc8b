import gc

import eval_global


def test_garbage_is_collected_but_for_that_of_modules():
    assert eval_global.ex.commands
    assert gc.isenabled() and gc.get_freeze_count() > 100_000
