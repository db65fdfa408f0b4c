"""Real data, small enough to come with the package."""

from importlib.resources import as_file, files

from multirnn.series import Series, read_series

__all__ = ["seattle_weather"]


def seattle_weather() -> Series:
    """The weather of Seattle, 1461 days from 2012 to 2015: precipitation (mm), highest and lowest temperature (°C), wind (m/s).

    Source: daily summaries of NOAA, public domain, as the package vega-datasets (BSD-3-Clause) has them.
    """
    with as_file(files("multirnn.samples") / "seattle-weather.csv") as path:
        return read_series(path)
