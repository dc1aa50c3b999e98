"""Structs of Thrift's compact protocol, in which Parquet's footers and the headers of its pages are written.

Arrow keeps to itself what is needed here of the headers, and ends the process over some footers.
"""

from __future__ import annotations

from typing import Any

_TRUE, _FALSE, _BYTE, _DOUBLE, _BYTES, _LIST, _SET, _STRUCT = 1, 2, 3, 7, 8, 9, 10, 12
_INTEGERS = (4, 5, 6)


def read_struct(data: bytes, place: int, number: int = 0) -> tuple[dict[int, Any], int]:
    """Fields of a struct by number, and the place after it; where not at its start, those that follow field `number`.

    Raises IndexError where the data end before, ValueError for what no struct of Parquet's holds.
    """
    fields: dict[int, Any] = {}
    while head := data[place]:
        place += 1
        step, kind = head >> 4, head & 15
        if step:
            number += step
        else:
            number, place = _integer(data, place)
        if kind in (_TRUE, _FALSE):
            fields[number] = kind == _TRUE
        else:
            fields[number], place = _value(data, place, kind)
    return fields, place + 1


def _value(data: bytes, place: int, kind: int) -> tuple[Any, int]:
    if kind in _INTEGERS:
        return _integer(data, place)
    if kind == _STRUCT:
        return read_struct(data, place)
    if kind in (_LIST, _SET):
        return _list(data, place)
    if kind == _BYTES:
        length, place = _varint(data, place)
        return data[place : place + length], place + length
    if kind in (_TRUE, _FALSE, _BYTE):  # a truth value in a list
        return data[place], place + 1
    if kind == _DOUBLE:
        return data[place : place + 8], place + 8
    raise ValueError(f"nothing in Parquet is of Thrift's type {kind}")


def _list(data: bytes, place: int) -> tuple[list[Any], int]:
    length, kind = data[place] >> 4, data[place] & 15
    place += 1
    if length == 15:
        length, place = _varint(data, place)
    values = []
    for _ in range(length):
        value, place = _value(data, place, kind)
        values.append(value)
    return values, place


def _integer(data: bytes, place: int) -> tuple[int, int]:
    value, place = _varint(data, place)
    return (value >> 1) ^ -(value & 1), place


def _varint(data: bytes, place: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[place]
        place += 1
        value |= (byte & 127) << shift
        shift += 7
        if byte < 128:
            return value, place
        if shift > 63:
            raise ValueError("no number of Thrift is as long as that")
