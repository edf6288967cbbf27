"""Names for instances that nobody named."""

import secrets

FIRST = """
amber ashen azure bold brisk calm clear coral crisp deft dusky early even fair fleet fond gentle glad golden grand hazel
ivory jolly keen kind lively lucid mellow merry mild misty noble opal pale plain proud quick quiet rapid russet sage
sleek smart solid spry steady still stout sunny swift tidy topaz vivid warm wise witty
"""
SECOND = """
badger beech birch bison brook cedar clover condor crane dune eagle elm falcon fern finch fir fjord fox gecko glade grove
harbor hare heron hill ibis iris jay kite lake lark larch lily linden lynx maple marten meadow moss oak orca otter owl
pine plover poplar raven reef ridge robin rowan seal spruce stork swan tern thrush vale willow wren yew
"""


def new_name() -> str:
    """Two words and four hexadecimal digits, such as ``calm-otter-3f9a``."""
    return f"{secrets.choice(FIRST.split())}-{secrets.choice(SECOND.split())}-{secrets.token_hex(2)}"


def new_suffix() -> str:
    """Six hexadecimal digits that make a name one of its own."""
    return secrets.token_hex(3)
