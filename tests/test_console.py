"""How commands end: one message and an exit status that says what kind of failure it was."""

import errno
import os

import pytest

from dsfer.console import MENDS, run
from dsfer.errors import ConfigError, DownloadError, NoStoreError, StoreError


def ends(error: BaseException, capsys: pytest.CaptureFixture[str]) -> tuple[int, str]:
    def main() -> None:
        raise error

    with pytest.raises(SystemExit) as ended:
        run(main)
    return ended.value.code, capsys.readouterr().err


def test_bad_input_is_one_message_and_status_1(capsys):
    error = ConfigError("is odd", where="params.yaml, lr", mend="set another")
    assert ends(error, capsys) == (
        1, "error: params.yaml, lr: is odd. To mend it: set another.\n",
    )  # fmt: skip


@pytest.mark.parametrize("kind", [DownloadError, StoreError])
def test_what_does_not_answer_says_that_it_may_pass(kind, capsys):
    assert ends(kind("no answer"), capsys) == (os.EX_TEMPFAIL, "error: no answer.\n")


def test_a_store_that_is_none_will_not_come(capsys):
    assert ends(NoStoreError("no such bucket"), capsys)[0] == 1


@pytest.mark.parametrize("number", sorted(MENDS))
def test_what_the_system_refuses_is_named_with_a_mend(number, capsys):
    error = OSError(number, os.strerror(number), "data/x.tar")
    status, said = ends(error, capsys)
    assert status == 1
    assert said.startswith("error: data/x.tar: ") and "To mend it: " in said


def test_ctrl_c_is_no_traceback(capsys):
    assert ends(KeyboardInterrupt(), capsys) == (130, "interrupted\n")


@pytest.mark.parametrize("error", [KeyError("x"), OSError(errno.EINVAL, "odd")])
def test_programming_errors_keep_their_traceback(error):
    def main() -> None:
        raise error

    with pytest.raises(type(error)):
        run(main)
