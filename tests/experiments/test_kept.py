"""What an interrupted run had finished is read, not made again."""

from experiments._kept import kept


def test_finished_results_are_read_and_not_made_again(tmp_path):
    made = []

    def make(value):
        made.append(value)
        return {"value": value}

    assert [kept(tmp_path, "a result", make, 3) for _ in range(2)] == [{"value": 3}] * 2
    assert made == [3] and [path.name for path in tmp_path.iterdir()] == ["a-result.json"]
