"""The converters on lines of the published formats, and on the two files that are at hand."""

from __future__ import annotations

import gzip
from pathlib import Path

import pytest

from evaluation.datasets.__main__ import CONVERTERS, main
from evaluation.datasets.common import Conversion
from evaluation.files import DataError, FileProduct, Log, read_catalogue, read_events
from udfs.schemas import Event

DATA = Path(__file__).parents[2] / ".." / "shared" / "data"
MIDNIGHT_MS = 1_291_161_600_000  # 2010-12-01


def convert(tmp_path: Path, name: str, **files: str) -> Conversion:
    """Write files (dots as double underscores, dashes as single ones) and convert them."""
    paths = []
    for file, text in files.items():
        path = tmp_path / file.replace("__", ".").replace("_dash_", "-")
        path.write_text(text, encoding="latin-1" if ".dat" in path.name else "utf-8")
        paths.append(path)
    return CONVERTERS[name](paths)


def brief(event: Event) -> tuple[str, str, int, str | None, str | None]:
    return event.user_id, event.type, event.ts, event.product_id, event.session_id


RETAIL = """InvoiceNo,StockCode,Description,Quantity,InvoiceDate,UnitPrice,CustomerID,Country
536365,85123A,WHITE HANGING HEART T-LIGHT HOLDER,6,2010-12-01 08:26:00,2.55,17850.0,United Kingdom
536365,POST,POSTAGE,1,2010-12-01 08:26:00,18.0,17850.0,United Kingdom
536365,71053,"WHITE METAL, LANTERN",6,2010-12-01 08:26:00,3.39,17850.0,United Kingdom
536366,71053,WHITE METAL LANTERN,1,12/1/2010 8:28,3.40,,United Kingdom
536367,71053,WHITE METAL LANTERN,1,2010-12-01 08:29:00,3.40,17850.0,United Kingdom
C536379,85123A,WHITE HANGING HEART T-LIGHT HOLDER,-1,2010-12-01 09:41:00,2.55,14527.0,United Kingdom
536589,21777,,-10,2010-12-01 16:50:00,0.0,,United Kingdom
A563185,B,Adjust bad debt,1,2011-08-12 14:50:00,11062.06,,United Kingdom
"""


def test_online_retail(tmp_path: Path) -> None:
    made = convert(tmp_path, "online-retail", retail__csv=RETAIL)
    minute = MIDNIGHT_MS + (8 * 60 + 26) * 60_000
    assert [brief(event) for event in made.events] == [
        ("17850", "purchase", minute, "85123A", "536365"),
        ("17850", "purchase", minute + 1, "71053", "536365"),
        ("invoice-536366", "purchase", minute + 120_000, "71053", "536366"),
        ("17850", "purchase", minute + 180_000, "71053", "536367"),
    ]
    assert [event.quantity for event in made.events] == [6, 6, 1, 1]
    assert len({event.event_id for event in made.events}) == 4
    assert made.products["71053"] == FileProduct("71053", title="WHITE METAL LANTERN", price=3.4)
    assert made.left_out == {"cancellation": 1, "bookkeeping": 2, "no product": 1}


def test_open_ecommerce_as_published(tmp_path: Path) -> None:
    header = (
        "Order Date,Purchase Price Per Unit,Quantity,Shipping Address State,Title,"
        "ASIN/ISBN (Product Code),Category,Survey ResponseID\n"
    )
    lines = (
        '2018-12-04,7.98,1.0,NJ,"SanDisk Ultra 16GB, Class 10",B0143RTB1E,FLASH_MEMORY,R_1\n'
        "2018-12-04,13.99,2.0,NJ,Gift Card,,GIFT_CARD,R_1\n"
        "2018-12-04,8.99,1.0,NJ,Cable,B01MA1MJ6H,CABLE,R_1\n"
    )
    made = convert(tmp_path, "open-ecommerce", purchases__csv=header + lines)
    day = 1_543_881_600_000
    assert [brief(event) for event in made.events] == [
        ("R_1", "purchase", day, "B0143RTB1E", "R_1-2018-12-04"),
        ("R_1", "purchase", day + 1, "B01MA1MJ6H", "R_1-2018-12-04"),
    ]
    assert made.products["B0143RTB1E"].category == "FLASH_MEMORY"
    assert made.left_out == {"no product code or user": 1}


def test_open_ecommerce_as_prepared(tmp_path: Path) -> None:
    table = "date,user,asin,title,category,price,qty\n2018-01-01,u,B1,Belt,APPAREL_BELT,22.84,1.0\n"
    made = convert(tmp_path, "open-ecommerce", purchases__csv=table)
    assert brief(made.events[0]) == ("u", "purchase", 1_514_764_800_000, "B1", "u-2018-01-01")
    assert made.products["B1"] == FileProduct(
        "B1", title="Belt", category="APPAREL_BELT", price=22.84
    )


def test_retailrocket(tmp_path: Path) -> None:
    events = (
        "timestamp,visitorid,event,itemid,transactionid\n"
        "1433221332117,257597,view,355908,\n"
        "1433224214164,992329,addtocart,248676,\n"
        "1433222276276,599528,transaction,355908,4000\n"
    )
    first = (
        "timestamp,itemid,property,value\n"
        "1435460400000,355908,categoryid,1338\n"
        "1441508400000,248676,888,1116713 960601 n277.200\n"
    )
    second = (
        "timestamp,itemid,property,value\n"
        "1433041200000,355908,categoryid,9\n"
        "1439089200000,460429,categoryid,1338\n"
    )
    made = convert(
        tmp_path,
        "retailrocket",
        events__csv=events,
        item_properties_part1__csv=first,
        item_properties_part2__csv=second,
    )
    assert [brief(event) for event in made.events] == [
        ("257597", "click", 1433221332117, "355908", None),
        ("992329", "add_to_cart", 1433224214164, "248676", None),
        ("599528", "purchase", 1433222276276, "355908", None),
    ]
    assert list(made.products.values()) == [
        FileProduct("355908", category="1338"),
        FileProduct("248676"),
    ]


def test_yoochoose(tmp_path: Path) -> None:
    made = convert(
        tmp_path,
        "yoochoose",
        yoochoose_dash_clicks__dat=(
            "1,2014-04-07T10:51:09.277Z,214536502,0\n"
            "1,2014-04-07T10:54:09.868Z,214536500,S\n"
            "2,2014-04-07T13:56:37.614Z,214536500,7\n"
        ),
        yoochoose_dash_buys__dat=(
            "1,2014-04-07T10:59:09.868Z,214536500,12462,1\n"
            "2,2014-04-07T14:59:09.868Z,214536502,0,0\n"
        ),
    )
    first = 1_396_867_869_277
    assert [brief(event) for event in made.events] == [
        ("1", "click", first, "214536502", "1"),
        ("1", "click", first + 180_591, "214536500", "1"),
        ("2", "click", first + 11_128_337, "214536500", "2"),
        ("1", "purchase", first + 480_591, "214536500", "1"),
        ("2", "purchase", first + 14_880_591, "214536502", "2"),
    ]
    assert [event.quantity for event in made.events[3:]] == [1, None]
    assert made.products["214536500"] == FileProduct("214536500", category="7", price=12462.0)
    assert made.products["214536502"] == FileProduct("214536502")


def test_diginetica(tmp_path: Path) -> None:
    made = convert(
        tmp_path,
        "diginetica",
        train_dash_item_dash_views__csv=(
            "sessionId;userId;itemId;timeframe;eventdate\n"
            "1;NA;81766;526309;2016-05-09\n"
            "2;77;31331;1031018;2016-05-09\n"
        ),
        train_dash_purchases__csv=(
            "sessionId;userId;timeframe;eventdate;ordernumber;itemId\n"
            "2;77;1421660;2016-05-09;16421;31331\n"
        ),
        products__csv="itemId;pricelog2;product.name.tokens\n81766;10;4875,776,56689\n",
        product_dash_categories__csv="itemId;categoryId\n31331;799\n",
    )
    day = 1_462_752_000_000
    assert [brief(event) for event in made.events] == [
        ("session-1", "click", day + 526_309, "81766", "1"),
        ("77", "click", day + 1_031_018, "31331", "2"),
        ("77", "purchase", day + 1_421_660, "31331", "2"),
    ]
    assert list(made.products.values()) == [
        FileProduct("81766", title="4875 776 56689"),
        FileProduct("31331", category="799"),
    ]


def test_movielens_of_both_ages(tmp_path: Path) -> None:
    new = convert(
        tmp_path,
        "movielens",
        ratings__csv="userId,movieId,rating,timestamp\n1,31,2.5,1260759144\n",
        movies__csv='movieId,title,genres\n31,"Dangerous Minds, The (1995)",Crime|Drama\n',
    )
    old = convert(
        tmp_path,
        "movielens",
        ratings__dat="1::31::2::1260759144\n",
        movies__dat="31::Dangerous Minds, The (1995)::Crime|Drama\n32::Café::Drama\n",
    )
    for made in (new, old):
        assert [brief(event) for event in made.events] == [
            ("1", "click", 1_260_759_144_000, "31", "1-2009-12-14")
        ]
        assert made.products["31"] == FileProduct(
            "31", title="Dangerous Minds, The (1995)", category="Crime Drama"
        )
    assert old.products["32"].title == "Café"


@pytest.mark.parametrize(
    ("name", "file", "text", "message"),
    [
        ("online-retail", "r__csv", "a,b\n1,2\n", "has no column InvoiceNo, StockCode"),
        ("online-retail", "r__csv", RETAIL.replace("2.55,17850", "x,17850"), "row 2: could not"),
        ("online-retail", "r__csv", RETAIL.replace("12/1/2010 8:28", "today"), "row 5: 'today'"),
        ("open-ecommerce", "r__csv", "a,b\n1\n", "line 2: 1 columns, expected 2"),
        ("retailrocket", "other__csv", "", "--input must name events.csv"),
        ("yoochoose", "yoochoose_dash_clicks__dat", "1,noon,2,0\n", "line 1: 'noon'"),
        ("movielens", "ratings__dat", "1::2::3::soon\n", "rating 1: invalid literal"),
    ],
)
def test_what_is_not_of_the_format_is_an_error(
    tmp_path: Path, name: str, file: str, text: str, message: str
) -> None:
    with pytest.raises(DataError, match=message):
        convert(tmp_path, name, **{file: text})


def test_the_command_writes_what_the_evaluation_reads(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = tmp_path / "retail.csv.gz"
    source.write_bytes(gzip.compress(RETAIL.encode()))
    events, catalogue = tmp_path / "log.jsonl.gz", tmp_path / "catalogue.jsonl"
    arguments = ["online-retail", "--input", str(source), "--events", str(events)]
    assert main([*arguments, "--catalogue", str(catalogue)]) == 0
    log = read_events(events)
    assert (len(log), log.users) == (4, ["17850", "invoice-536366"])
    assert read_catalogue(catalogue).keys() == {"85123A", "71053"}
    assert "left out: 2 lines (bookkeeping)" in capsys.readouterr().out
    assert (
        main([*arguments[:2], str(tmp_path / "none.csv"), *arguments[3:], "--catalogue", "x"]) == 1
    )
    assert "none.csv cannot be read" in capsys.readouterr().err


def at_hand(tmp_path: Path, name: str, file: str) -> tuple[Log, dict[str, FileProduct]]:
    source = DATA / file
    if not source.exists():
        pytest.skip(f"the data set is not here: {file}")
    events, catalogue = tmp_path / "log.jsonl.gz", tmp_path / "catalogue.jsonl.gz"
    arguments = ["--events", str(events), "--catalogue", str(catalogue)]
    assert main([name, "--input", str(source), *arguments]) == 0
    return read_events(events), read_catalogue(catalogue)


def test_the_whole_of_online_retail(tmp_path: Path) -> None:
    log, products = at_hand(tmp_path, "online-retail", "online_retail.csv.gz")
    # 541,909 lines less those that are counted as left out.
    assert len(log) == 541_909 - 9_288 - 2_518 - 2_311
    assert log.duplicates == 0
    assert set(log.items) == products.keys()
    assert all(product.title for product in products.values())


def test_the_whole_of_open_ecommerce(tmp_path: Path) -> None:
    log, products = at_hand(tmp_path, "open-ecommerce", "purchases_dev.csv.gz")
    assert (len(log), len(log.users), len(products)) == (196_936, 1_223, 147_022)
    assert (log.duplicates, int(log.session_of.max()) + 1 > 50_000) == (0, True)
