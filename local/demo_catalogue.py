"""A made-up catalogue for the demo: no real brand, product or price is meant.

Deterministic: the same 2,000 products in 40 categories at every start.
"""

from __future__ import annotations

import base64
import random
from dataclasses import dataclass
from itertools import product as combinations

import msgspec

from local.errors import StackError
from udfs.query_encoder import SPACE, encode_texts

PRODUCTS = 2_000

# category: (lowest price, highest price, things, qualities)
_CATEGORIES: dict[str, tuple[float, float, str, str]] = {
    "MONITOR": (99, 899, "Monitor|Curved Monitor|Portable Monitor", "24 inch|27 inch 4K|34 inch"),
    "KEYBOARD": (19, 199, "Keyboard|Mechanical Keyboard|Number Pad", "Wireless|Compact|Backlit"),
    "MOUSE": (9, 119, "Mouse|Trackball|Vertical Mouse", "Wireless|Silent|Gaming"),
    "LAPTOP": (349, 2499, "Laptop|Ultrabook|Notebook", "13 inch|14 inch|16 inch"),
    "TABLET": (119, 999, "Tablet|E-Reader|Drawing Tablet", "8 inch|10 inch|12 inch"),
    "PHONE": (129, 1199, "Smartphone|Phone|Foldable Phone", "128 GB|256 GB|Dual SIM"),
    "HEADPHONES": (19, 399, "Headphones|Earbuds|Headset", "Noise Cancelling|Wireless|Studio"),
    "SPEAKER": (25, 599, "Speaker|Soundbar|Bookshelf Speakers", "Bluetooth|Waterproof|Stereo"),
    "CAMERA": (149, 1899, "Camera|Action Camera|Instant Camera", "Mirrorless|Compact|4K"),
    "TRIPOD": (15, 249, "Tripod|Monopod|Camera Slider", "Aluminium|Carbon|Travel"),
    "ROUTER": (39, 399, "Router|Mesh System|Wireless Access Point", "Dual Band|Wi-Fi 7|Gigabit"),
    "STORAGE": (29, 399, "Solid State Drive|Hard Disk|Memory Card", "1 TB|2 TB|Portable"),
    "PRINTER": (59, 499, "Printer|Laser Printer|Photo Printer", "Colour|Wireless|Compact"),
    "CHARGER": (9, 89, "Charger|Power Bank|Charging Station", "Fast|USB-C|Solar"),
    "COFFEE": (15, 699, "Coffee Machine|Coffee Grinder|French Press", "Automatic|Steel|Manual"),
    "COOKWARE": (12, 249, "Frying Pan|Saucepan|Casserole", "Cast Iron|Non-Stick|Copper"),
    "KNIFE": (9, 189, "Chef Knife|Bread Knife|Knife Set", "Damascus|Ceramic|Forged"),
    "BAKING": (6, 89, "Cake Tin|Baking Tray|Rolling Pin", "Silicone|Springform|Wooden"),
    "BLENDER": (25, 399, "Blender|Food Processor|Hand Mixer", "High Speed|Quiet|Cordless"),
    "TEA": (5, 79, "Teapot|Tea Sampler|Electric Kettle", "Glass|Green|Ceramic"),
    "BEDDING": (19, 299, "Duvet|Pillow|Bed Sheets", "Down|Linen|Cotton"),
    "LAMP": (15, 249, "Desk Lamp|Floor Lamp|Night Light", "Dimmable|Brass|Rechargeable"),
    "CHAIR": (49, 899, "Office Chair|Dining Chair|Rocking Chair", "Ergonomic|Oak|Mesh"),
    "DESK": (89, 999, "Standing Desk|Writing Desk|Corner Desk", "Electric|Walnut|Folding"),
    "RUG": (29, 499, "Rug|Runner|Door Mat", "Wool|Jute|Washable"),
    "PLANT": (7, 99, "House Plant|Planter|Watering Can", "Hanging|Terracotta|Tall"),
    "TOOL": (12, 299, "Cordless Drill|Screwdriver Set|Circular Saw", "18 V|Compact|Magnetic"),
    "GARDEN": (9, 449, "Lawn Mower|Hedge Trimmer|Garden Hose", "Electric|Expandable|Quiet"),
    "BIKE": (19, 1899, "City Bike|Bike Helmet|Bike Light", "Lightweight|Folding|Bright"),
    "RUNNING": (15, 189, "Running Shoes|Running Vest|Running Belt", "Trail|Light|Reflective"),
    "YOGA": (9, 119, "Yoga Mat|Yoga Block|Meditation Cushion", "Cork|Extra Thick|Organic"),
    "TENT": (59, 699, "Tent|Sleeping Bag|Camping Stove", "Two Person|Ultralight|Winter"),
    "BACKPACK": (25, 249, "Backpack|Travel Bag|Hip Pack", "Waterproof|30 Litre|Leather"),
    "WATCH": (39, 799, "Wrist Watch|Smart Watch|Diving Watch", "Automatic|GPS|Steel"),
    "JACKET": (49, 399, "Rain Jacket|Down Jacket|Fleece", "Hooded|Packable|Warm"),
    "BOARDGAME": (12, 99, "Board Game|Card Game|Jigsaw Puzzle", "Strategy|Family|Cooperative"),
    "TOY": (6, 149, "Building Blocks|Wooden Train|Plush Bear", "Large|Classic|Soft"),
    "GUITAR": (79, 1299, "Acoustic Guitar|Electric Guitar|Ukulele", "Spruce|Mahogany|Travel"),
    "PEN": (3, 189, "Fountain Pen|Notebook|Ink Bottle", "Fine|Dotted|Blue"),
    "PET": (5, 149, "Dog Bed|Cat Tree|Pet Fountain", "Washable|Large|Quiet"),
}
_BRANDS = (
    *("Nordvik", "Alpenta", "Kumora", "Belvane", "Ostrea", "Tamrin", "Velloro", "Hexby"),
    *("Quillon", "Sorabel", "Mirante", "Dunholm", "Calyra", "Pinewake", "Orbelle", "Ferrant"),
)


@dataclass(frozen=True)
class DemoProduct:
    """One made-up product."""

    product_id: str
    title: str
    category: str
    price: float
    in_stock: bool


def products(count: int = PRODUCTS) -> list[DemoProduct]:
    """The catalogue, the same at every call."""
    rng = random.Random(7)
    each = -(-count // len(_CATEGORIES))
    made: list[DemoProduct] = []
    for category, (low, high, things, qualities) in _CATEGORIES.items():
        kinds = list(combinations(things.split("|"), qualities.split("|"), _BRANDS))
        for number, (thing, quality, brand) in enumerate(rng.sample(kinds, each)):
            price = low * (high / low) ** rng.random()
            made.append(
                DemoProduct(
                    product_id=f"{category.lower()}-{number:03d}",
                    title=f"{brand} {quality} {thing} {rng.choice('SLXPE')}{rng.randint(1, 9)}0",
                    category=category,
                    price=round(price) - 0.01,
                    in_stock=rng.random() > 0.03,
                )
            )
    return made[:count]


def titles() -> dict[str, str]:
    """Product id to title."""
    return {product.product_id: product.title for product in products()}


def messages() -> list[tuple[str, bytes]]:
    """The catalogue as Kafka keys and values, with the embedding of title and category."""
    catalogue = products()
    vectors = encode_texts([f"{item.title} {item.category.lower()}" for item in catalogue])
    return [
        (
            item.product_id,
            msgspec.json.encode(
                {
                    "product_id": item.product_id,
                    "title": item.title,
                    "category": item.category,
                    "price": item.price,
                    "in_stock": item.in_stock,
                    "embedding": base64.b64encode(vector.astype("<f4").tobytes()).decode(),
                    "space": SPACE,
                }
            ),
        )
        for item, vector in zip(catalogue, vectors, strict=True)
    ]


def publish(bootstrap: str, topic: str = "catalogue") -> int:
    """Send the catalogue to Kafka and wait for every acknowledgement."""
    from confluent_kafka import Producer

    producer = Producer(
        {
            "bootstrap.servers": bootstrap,
            "enable.idempotence": True,
            "linger.ms": 20,
            # A broker that has just started is asked again, and not told of.
            "log_level": 3,
        }
    )
    everything = messages()
    for key, value in everything:
        producer.produce(topic, value, key)
        producer.poll(0)
    if producer.flush(60):
        raise StackError("kafka", f"the catalogue was not accepted by topic {topic}")
    return len(everything)
