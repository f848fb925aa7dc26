"""The golden list of cleaned captions: what diffusers makes of texts of all kinds.

Needs diffusers, beautifulsoup4 and ftfy. From the repository's root:
PYTHONPATH=.:tests python tests/golden/make_cleaning.py
"""

import json
import pathlib
import random
import types

ALT_TEXTS = (
    'A small cactus with a happy face in the Sahara desert.',
    '  “Pirate ship” trapped in a cosmic maelstrom nebula, rendered in 8K … unreal engine!!  ',
    'Canvas Print 30x40 cm – FREE SHIPPING WORLDWIDE | shop.example.com/prints?id=1234567',
    "Women's T-Shirt &quot;Cat &amp; Dog&quot; (Black) #12345 by @cat_lover_99",
    '<p>Vintage <b>poster</b> of <i>Paris</i>,&nbsp;1920&#8217;s</p><br/>click for more',
    'IMG_20190203_142233.jpg',
    'this-is-my-cute-cat-on-a-mat.png',
    'stock_photo_of_a_big_red_dog',
    'Photo by John Doe https://www.flickr.com/photos/123/456 12:30 ',
    'mail me at jo.doe@example.com please',
    'Le cafÃ© du Marché, 3.5х4.2 m, prix 20€',
    'l’été — “l’hiver” … «printemps»',
    '漢字とカタカナ and latin ㈱',
    'server at 192.168.0.1 : port 8080',
    'free download PNG images of clouds, page 12',
    'Nikon D750 jc6640vc 6640vc231',
    '“”',
    '***AUSVERKAUFT***, #AUSVERKAUFT',
    '"quoted"',
    "'single'",
    '-dash at both ends-',
    '.hidden',
    '...',
    '',
    '   ',
    'tab\tand\nline\\nbreak',
    'wow!!! [brackets] {braces} (round) a|b c/d e\\f',
    'a , b . c ; d : e',
    '<script>alert("x")</script>after',
    '<!-- comment -->text<!DOCTYPE html>',
    'a < b and b > c & d',
    '&lt;b&gt;bold&lt;/b&gt; &amp;amp; &eacute; &#x41; &#65; &unknown; &copy',
    '5 < 6 <person> walks',
    '%20encoded+plus%C3%A9',
    'Ünïcödé ﬁne Ⅷ ½ ™ © ® º · ¿qué? ¡sí!',
    '😀 smile 👩‍👩‍👧‍👦 family',
    'zero\u200bwidth \ufeffbom \xa0nbsp \x00nul \x07bell',
)
PIECES = (
    'a cat¶Hello¶https://www.example.com/a/b?x=1¶www.test.org¶http://x.ru/¶foo.co.uk¶'
    'mail@site.com¶@nick¶日本語¶㌀¶ー¶—¶–¶-¶_¶this-is-my-cute-cat¶a_b_c_d_e¶"¶\'¶«¶»¶“¶”¶``¶""¶\'\'¶'
    '&quot;¶&amp;¶&amp¶&lt;b&gt;¶&lt;¶<b>¶</b>¶<br>¶<p class="x">¶</p>¶<i></i>¶&#65;¶&nbsp;¶'
    '&eacute;¶&foo;¶127.0.0.1¶3:45 ¶12:30¶\\n¶\n¶\t¶  ¶#1¶#1234¶#12345¶#hash¶123456¶12345¶'
    'photo.png¶DSC001.JPG¶png¶jpg image¶pdf¶...¶.¶ . ¶,¶;¶:¶ : ¶!!!¶(¶]¶{¶|¶/¶*¶***SALE***¶ab123¶'
    'abc123456¶jc6640vc¶6640vc231¶j2d1a2a¶worldwide free shipping¶free download¶download free¶'
    'click for more¶click on¶page 12¶30x40¶30×40¶cafÃ©¶â€œquotedâ€\x9d¶ﬁ¶İstanbul¶😀¶\u200b¶%20¶+¶'
    'a+b¶<person>¶.com¶x¶.hidden¶-start¶end-¶1¶a.b¶c/d¶~¶½¶™¶´¶https://¶https:x¶www:a'
).split('¶')


def captions(seed: int, count: int) -> list[str]:
    """Texts put together at random, so that one rule leaves work for another."""
    draw = random.Random(seed)
    return [
        ''.join(draw.choice(PIECES) + draw.choice(('', ' ', ' ')) for _ in range(draw.randint(2, 8)))
        for _ in range(count)
    ]


def reference():
    """diffusers' own cleaning, without its pipeline."""
    from diffusers import PixArtAlphaPipeline as Pipeline

    bare = types.SimpleNamespace(bad_punct_regex=Pipeline.bad_punct_regex)
    bare._clean_caption = lambda text: Pipeline._clean_caption(bare, text)
    return lambda text: Pipeline._text_preprocessing(bare, text, clean_caption=True)[0]


def main() -> None:
    clean = reference()
    pairs = [[text, clean(text)] for text in (*ALT_TEXTS, *PIECES, *captions(0, 250))]
    lines = ',\n'.join(json.dumps(pair, ensure_ascii=False) for pair in pairs)
    pathlib.Path(__file__).with_name('cleaning.json').write_text(f'[\n{lines}\n]\n')


if __name__ == '__main__':
    main()
