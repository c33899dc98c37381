"""A history that no training can have written is refused, by its name."""

import pytest

from cytomad_lib.data.errors import RunError
from cytomad_lib.history import best_epoch, read_history

GOOD = "epoch,loss,val_loss,seconds\n1,3.0,4.0,0.5\n2,2.0,3.0,0.5\n3,1.0,3.5,0.5\n"


def write(folder, text):
    (folder / "history.csv").write_bytes(text if isinstance(text, bytes) else text.encode())


def test_a_history_is_read_and_the_best_epoch_found(tmp_path):
    assert not len(read_history(tmp_path))
    write(tmp_path, GOOD)
    history = read_history(tmp_path)
    assert best_epoch(history) == 2 and best_epoch(history, last=True) == 3


def test_epochs_of_before_times_were_kept_have_none(tmp_path):
    write(tmp_path, GOOD.replace("1,3.0,4.0,0.5", "1,3.0,4.0,"))
    assert len(read_history(tmp_path)) == 3


@pytest.mark.parametrize(
    "text, says",
    [
        (GOOD + "3,1.0,3.5,0.5\n", "has epoch 3 in line 5, where epoch 4 belongs"),
        (GOOD.replace("2,2.0", "4,2.0"), "has epoch 4 in line 3, where epoch 2 belongs"),
        (GOOD.replace("1,3.0", "0,3.0"), "has epoch 0 in line 2, where epoch 1 belongs"),
        (GOOD.replace("1,3.0", "1.5,3.0"), "has epoch 1.5 in line 2"),
        (GOOD.replace("2,2.0", "2,oops"), "has 'oops' in column loss, line 3"),
        (GOOD.replace("2,2.0", "2,"), "has 'nan' in column loss, line 3"),
        (GOOD.replace("2,2.0", "2,inf"), "has 'inf' in column loss, line 3"),
        (GOOD.replace("val_loss", "other"), "has no column val_loss"),
        (GOOD[: GOOD.index("1")], "has no epoch"),
        (GOOD + "4,1,2,3,4,5,6\n", "cannot be read"),
        ("", "cannot be read"),
        (b"epoch,val_loss\n\xff\xfe,1\n", "cannot be read"),
    ],
)
def test_what_cannot_be_is_refused(tmp_path, text, says):
    write(tmp_path, text)
    with pytest.raises(RunError) as caught:
        read_history(tmp_path)
    for words in (f"{tmp_path / 'history.csv'} {says}", "Expected", f"remove {tmp_path}"):
        assert words in str(caught.value)
