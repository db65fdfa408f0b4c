"""Reading a series, the sentences for files that hold none, and the windows cut out of it."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import multirnn as mr
from multirnn.errors import InvalidData
from multirnn.samples import seattle_weather
from multirnn.series import Series, read_series


@pytest.fixture
def file(tmp_path):
    """Writes a file of this name and content, and gives its path."""

    def write(name, content):
        path = tmp_path / name
        if isinstance(content, np.ndarray):
            np.save(path, content)
        else:
            path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    return write


# --- What can be read ------------------------------------------------------------------------------------------------


def test_a_header_names_the_features_and_labels_are_dropped(file):
    series = read_series(file("a.csv", "date,rain,sky,wind\n2012/01/01,0.5,sun,3\n2012/01/02,-1e1,fog,4.25\n"))
    assert series.names == ("rain", "wind")
    assert series.dropped == ("date", "sky")
    assert series.values.dtype == np.float64
    assert series.values.tolist() == [[0.5, 3.0], [-10.0, 4.25]]


def test_without_a_header_columns_are_numbered_from_one(file):
    series = read_series(file("a.csv", "2012/01/01,1,2\n2012/01/02,3,4\n"))
    assert (series.names, series.dropped) == (("column 2", "column 3"), ("column 1",))
    assert series.values.tolist() == [[1, 2], [3, 4]]


@pytest.mark.parametrize(
    "text",
    [
        "\ufeffa,b\n1,2\n3,4\n",  # as Excel writes it
        "a,b\r\n1,2\r\n3,4\r\n",
        "a,b\n\n1,2\n3,4\n\n",
        "a,b\n 1 , 2\n3,4",
        '"a","b"\n"1","2"\n"3","4"\n',
    ],
)
def test_the_ways_in_which_programs_write_csv(file, text):
    series = read_series(file("A.CSV", text))
    assert series.names == ("a", "b")
    assert series.values.tolist() == [[1, 2], [3, 4]]


def test_a_column_without_a_name_is_called_by_its_place(file):
    assert read_series(file("a.csv", "a,\n1,2\n3,4\n")).names == ("a", "column 2")


def test_dates_with_underscores_are_no_numbers(file):
    assert read_series(file("a.csv", "day,x\n2012_01,1\n2012_02,2\n")).dropped == ("day",)


@pytest.mark.parametrize("dtype", ["float32", "float64", ">f8", "int16", "uint8", "bool", "longdouble", "float16"])
def test_npy_of_any_real_dtype(file, dtype):
    values = np.array([[0, 1], [1, 0], [1, 1]], dtype)
    series = read_series(file("a.npy", values))
    assert series.values.dtype == np.float64
    assert np.array_equal(series.values, values)
    assert series.names == ("column 1", "column 2")


def test_npy_of_one_axis_is_one_feature(file):
    assert read_series(file("a.npy", np.arange(5.0))).values.shape == (5, 1)


def test_npy_in_fortran_order(file):
    values = np.asfortranarray(np.arange(6.0).reshape(3, 2))
    assert np.array_equal(read_series(str(file("a.npy", values))).values, values)


# --- What cannot -----------------------------------------------------------------------------------------------------

HEADER = b"{'descr': '<f8', 'fortran_order': False, 'shape': (1000000000000, 4), }".ljust(117) + b"\n"
LIE = b"\x93NUMPY\x01\x00" + len(HEADER).to_bytes(2, "little") + HEADER + bytes(64)

UNREADABLE = {
    "empty": ("a.csv", "", "a.csv is empty; a series needs at least two rows of numbers"),
    "blank": ("a.csv", "\n \n\n", "a.csv is empty; a series needs at least two rows of numbers"),
    "header alone": ("a.csv", "rain,wind\n", "a.csv holds a header and no rows of numbers below it"),
    "one row": ("a.csv", "rain,wind\n1,2\n", "a.csv holds 1 row of numbers; a series needs at least two"),
    "labels alone": ("a.csv", "day,sky\nmo,sun\ntu,fog\n", "a.csv has no column of numbers, only 'day', 'sky'"),
    "semicolons": ("a.csv", "a;b\n1,5;2\n3,5;4\n", "a.csv has semicolons between its columns; save it with commas"),
    "tabs": ("a.csv", "a\tb\n1\t2\n", "a.csv has tabs between its columns; save it with commas"),
    "ragged": (
        "a.csv",
        "a,b\n1,2\n\n3,4,5\n",
        "a.csv, line 4: every line must have the 2 cells of the first, not 3",
    ),
    "empty cell": (
        "a.csv",
        "day,wind\n1,2\n2,\n3,4\n",
        "a.csv, line 3, column 'wind': the cell is empty; fill it in or leave the row out",
    ),
    "missing": (
        "a.csv",
        "wind\n1\nNaN\n3\n",
        "a.csv, line 3, column 'wind': 'NaN' is no measurement; fill it in or leave the row out",
    ),
    "text among numbers": (
        "a.csv",
        "wind\n1\n2\nthree\n",
        "a.csv, line 4, column 'wind': 'three' is not a finite number, as others in the column are; correct it or "
        "leave the column out",
    ),
    "infinite": (
        "a.csv",
        "1\n1e999\n",
        "a.csv, line 2, column 'column 1': '1e999' is not a finite number, as others in the column are; correct it or "
        "leave the column out",
    ),
    "Latin-1": ("a.csv", "größe\n1\n2\n".encode("latin-1"), "a.csv is not UTF-8 text: byte 2 is not; save it as UTF-8"),
    "UTF-16": ("a.csv", "a\n1\n2\n".encode("utf-16"), "a.csv is not UTF-8 text: byte 0 is not; save it as UTF-8"),
    "open quotes": ("a.csv", 'a,b\n"1,2\n', "a.csv, line 2, is not CSV: unexpected end of data"),
    "another suffix": ("a.xlsx", "", "a.xlsx: a series is read from a .csv or .npy file, and the name has to end so"),
    "no suffix": ("a", "", "a: a series is read from a .csv or .npy file, and the name has to end so"),
    "text in npy": ("a.npy", "1,2\n3,4\n", "a.npy holds no array of numbers as numpy.save writes it: the magic string"),
    "nothing in npy": ("a.npy", "", "a.npy holds no array of numbers as numpy.save writes it: EOF"),
    "a header that lies": ("a.npy", LIE, "a.npy holds no array of numbers as numpy.save writes it: mmap length"),
    "objects": (
        "a.npy",
        np.array([1, None]),
        "a.npy holds no array of numbers as numpy.save writes it: Array can't be memory-mapped: Python objects in dtype",
    ),
    "complex": ("a.npy", np.ones(3, "complex64"), "a.npy holds an array of complex64; a series is of real numbers"),
    "strings": ("a.npy", np.array(["a", "b"]), "a.npy holds an array of <U1; a series is of real numbers"),
    "three axes": (
        "a.npy",
        np.ones((2, 3, 4)),
        "a.npy holds an array of the shape (2, 3, 4); a series has (time, features) or (time,)",
    ),
    "no axis": (
        "a.npy",
        np.array(1.0),
        "a.npy holds an array of the shape (); a series has (time, features) or (time,)",
    ),
    "no rows": ("a.npy", np.ones((0, 2)), "a.npy holds no row of numbers; a series needs at least two"),
    "no features": (
        "a.npy",
        np.ones((2, 0)),
        "a.npy holds an array of the shape (2, 0), without a feature; a series has at least one",
    ),
    "not finite": (
        "a.npy",
        np.array([[1, 2], [3, np.nan]]),
        "a.npy: the element [1, 1] is nan; a series is of finite numbers, fill it in or leave the row out",
    ),
}


@pytest.mark.parametrize(("name", "content", "sentence"), UNREADABLE.values(), ids=UNREADABLE.keys())
def test_what_no_series_can_be_read_from(file, monkeypatch, name, content, sentence):
    path = file(name, content)
    monkeypatch.chdir(path.parent)
    with pytest.raises(InvalidData) as caught:
        read_series(name)
    assert str(caught.value).startswith(sentence)
    assert isinstance(caught.value, ValueError)


def test_a_path_that_leads_to_no_file(tmp_path):
    with pytest.raises(InvalidData, match=r"there is no file .*none\.csv$"):
        read_series(tmp_path / "none.csv")
    with pytest.raises(InvalidData, match=r"is a folder; a series is read from a \.csv or \.npy file$"):
        read_series(tmp_path)
    (tmp_path / "loop.csv").symlink_to(tmp_path / "loop.csv")
    with pytest.raises(InvalidData, match=r"loop\.csv cannot be read: "):
        read_series(tmp_path / "loop.csv")


def test_nothing_is_unpickled(tmp_path):
    class Trap:
        def __reduce__(self):
            return (tmp_path.joinpath("sprung").touch, ())

    np.save(tmp_path / "a.npy", np.array([Trap()], object), allow_pickle=True)
    with pytest.raises(InvalidData):
        read_series(tmp_path / "a.npy")
    assert not (tmp_path / "sprung").exists()


@given(st.binary(max_size=200), st.sampled_from([".csv", ".npy"]))
def test_any_bytes_are_a_series_or_a_sentence(tmp_path_factory, content, suffix):
    path = tmp_path_factory.getbasetemp() / f"fuzz{suffix}"
    path.write_bytes(content)
    try:
        series = read_series(path)
    except InvalidData:
        return
    assert np.isfinite(series.values).all()
    assert len(series.values) >= 2


# --- What becomes of it ----------------------------------------------------------------------------------------------


def test_seattle_weather():
    series = seattle_weather()
    assert series.names == ("precipitation", "temp_max", "temp_min", "wind")
    assert series.dropped == ("date", "weather")
    assert series.values.shape == (1461, 4)
    assert series.values[0].tolist() == [0.0, 12.8, 5.0, 4.7]
    assert series.constant == ()


@pytest.mark.parametrize("scale", [1e-300, 1.0, 1e300])
def test_standardised_features_have_mean_zero_and_deviation_one(scale):
    rng = np.random.default_rng(0)
    series = Series(scale * (3 + rng.standard_normal((101, 3))), ("a", "b", "c"))
    standardised = series.standardised()
    assert standardised.names == series.names
    assert mr.difference(standardised.values.std(axis=0), np.ones(3)).normwise <= mr.tolerance("float64")
    assert np.abs(standardised.values.mean(axis=0)).max() <= mr.tolerance("float64")
    order = np.argsort(series.values[:, 0])
    assert (np.diff(standardised.values[order, 0]) >= 0).all()


def test_a_constant_feature_is_zero_and_named():
    series = Series(np.array([[0.1, 1.0], [0.1, 2.0], [0.1, 4.0]]), ("still", "moving"))  # 0.1 has a mean of its own
    assert series.constant == ("still",)
    assert not series.standardised().values[:, 0].any()
    assert series.standardised().values[:, 1].any()


def test_windows_are_ragged_pieces_of_the_series():
    series = Series(np.arange(1.0, 98.0)[:, None], ("x",))
    x, lengths = series.windows(11, longest=13, seed=3)
    assert x.shape == (11, 13, 1)
    assert lengths.dtype == np.int64
    assert lengths.max() == 13
    assert 1 <= lengths.min() < 13
    for row, length in zip(x[:, :, 0], lengths, strict=True):
        assert (np.diff(row[:length]) == 1).all()
        assert row[0] >= 1
        assert not row[length:].any()


def test_windows_depend_on_the_seed_alone():
    series = seattle_weather()
    (x, lengths), (again, lengths_again) = (series.windows(7, longest=19, seed=5) for _ in range(2))
    assert np.array_equal(x, again)
    assert np.array_equal(lengths, lengths_again)
    assert not np.array_equal(x, series.windows(7, longest=19, seed=6)[0])


@given(st.integers(2, 9), st.integers(1, 9), st.data())
def test_windows_of_every_size(time, count, data):
    longest = data.draw(st.integers(1, time))
    x, lengths = Series(np.ones((time, 2)), ("a", "b")).windows(count, longest=longest, seed=data.draw(st.integers(0)))
    assert x.sum(axis=(1, 2)).tolist() == (2 * lengths).tolist()
    assert lengths.max() == longest
    assert (lengths < longest).any() or count == 1 or longest == 1


def test_windows_that_cannot_be_cut():
    series = Series(np.ones((5, 1)), ("a",))
    with pytest.raises(mr.InvalidCall, match="no window of 6 steps fits into a series of 5; ask for at most 5"):
        series.windows(2, longest=6)
    with pytest.raises(mr.InvalidCall, match="at least one window of one step is cut, not 0 of 3"):
        series.windows(0, longest=3)
