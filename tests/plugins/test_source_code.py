from labelleak.plugins import essence_of

PLAIN = """
def double(number):
    return 2 * number
"""
DRESSED = """
'''A module.'''

def double(
    number,  # of any kind
):
    '''Twice the number.'''
    return (
        2 * number
    )
"""


def test_words_and_layout_do_not_matter_and_code_does():
    assert essence_of(PLAIN) == essence_of(DRESSED)
    assert essence_of(PLAIN) != essence_of(PLAIN.replace("2", "3"))
    assert essence_of(PLAIN) != essence_of(PLAIN.replace("2 * number", "2 + number"))
    assert essence_of("x = 'a'") != essence_of("x = 'b'")


def test_the_essence_is_that_of_every_version_of_python():
    """Fields that only newer versions have, such as `type_params`, are empty in older code."""
    assert essence_of("f = [a]") == (
        "(Module body=(Assign targets=(Name id='f' ctx=(Load)),".replace("Load", "Store")
        + " value=(List elts=(Name id='a' ctx=(Load)), ctx=(Load))),)"
    )
    assert "type_params" not in essence_of(PLAIN)
