import msgspec


class Vendor(msgspec.Struct, frozen=True):
    lanes: bool = True
    strict: bool = False
    warmup: str = "full"
