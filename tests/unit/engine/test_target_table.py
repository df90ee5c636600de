"""The index of what targets show says what a scan of all of them would."""

from hypothesis import given
from hypothesis import strategies as st

from engine.catalog import LunRow, TargetRow
from engine.target_table import TargetTable

NAMES = st.sampled_from(["one", "two", "three"])
VOLUMES = st.sampled_from(["v", "w", "x"])
LUNS = st.lists(st.tuples(VOLUMES, st.sampled_from([None, "guid"]), st.one_of(st.none(), VOLUMES)), max_size=4)


@given(st.lists(st.tuples(NAMES, st.one_of(st.none(), LUNS)), max_size=30))
def test_it_finds_what_a_scan_finds_in_the_order_of_making(steps):
    table, rows = TargetTable(), {}
    for name, luns in steps:
        if luns is None:
            if rows.pop(name, None):
                table.drop(name)
        else:
            shown = tuple(LunRow(name, at, volume, guid, (), of) for at, (volume, guid, of) in enumerate(luns))
            rows[name] = table.put(TargetRow(name, 0.0, shown))
        assert list(table) == list(rows.values())
        assert len(table) == len(rows)
        for volume in ("v", "w", "x"):
            scanned = [lun for row in rows.values() for lun in row.luns if volume in (lun.volume_id, lun.standby_of)]
            assert table.luns_about(volume) == scanned
