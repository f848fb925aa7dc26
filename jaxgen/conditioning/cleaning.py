"""Captions cleaned as PixArt's were when it was trained (Chen et al., 2310.00426): by DeepFloyd IF's rules.

Written for the alt texts of the web: addresses, markup, file names, ids, shop talk and Chinese characters go,
marks are unified. What comes of it must not be improved on, as the networks were trained on it.
"""

import html
import re
from html.entities import html5
from html.parser import HTMLParser
from urllib.parse import unquote_plus

import ftfy

_FILES = 'png|jpg|jpeg|bmp|webp|eps|pdf|apk|mp4'


def _address(scheme: str) -> str:
    """A scheme, or a host and what follows it, but no mail address."""
    domains = 'com|co|ru|net|org|edu|gov|it'
    return rf'\b(?:{scheme}:(?:/{{1,3}}|[a-z0-9%])|[a-z0-9.\-]+\.(?:{domains})[\w/-]*\b/?(?!@))'


_ADDRESSES = [('<person>', 'person'), (_address('https?'), ''), (_address('www'), '')]
_MARKS = [
    (r'@\w+\b', ''),
    (r'[\u31c0-\u9fff]+', ''),
    (
        r'[\u002d\u058a\u05be\u1400\u1806\u2010-\u2015\u2e17\u2e1a\u2e3a\u2e3b\u2e40\u301c\u3030\u30a0'
        r'\ufe31\ufe32\ufe58\ufe63\uff0d]+',
        '-',
    ),
    ('[`´«»“”¨]', '"'),
    ('[‘’]', "'"),
    ('&quot;?', ''),
    ('&amp', ''),
    (r'\d{1,3}(?:\.\d{1,3}){3}', ' '),  # 127.0.0.1
    (r'\d:\d\d\s+$', ''),
    (r'\\n', ' '),
    (r'#\d{1,3}\b', ''),
    (r'#\d{5,}\b', ''),
    (r'\b\d{6,}\b', ''),
    (rf'\S+\.(?:{_FILES})', ''),
    (r'["\']{2,}', '"'),
    (r'\.{2,}', ' '),
    (r'[#®•©™&@·º½¾¿¡§~)(\]\[}{|\\/*]+', ' '),
    (r'\s+\.\s+', ' '),
]
_JOINTS = re.compile('[-_]')
_TALK = [
    (r'\b[a-zA-Z]{1,3}\d{3,15}\b', ''),  # ab1234
    (r'\b[a-zA-Z]+\d+[a-zA-Z]+\b', ''),  # ab1234cd
    (r'\b\d+[a-zA-Z]+\d+\b', ''),  # 1234ab56
    (r'(worldwide\s+)?(free\s+)?shipping', ''),
    (r'(free\s)?download(\sfree)?', ''),
    (r'\bclick\b\s(?:for|on)\s\w+', ''),
    (rf'\b(?:{_FILES})(\simages?)?', ''),
    (r'\bpage\s+\d+\b', ''),
    (r'\b\d*[a-zA-Z]+\d+[a-zA-Z]+\d+[a-zA-Z\d]*\b', ' '),  # a1b2c3
    (r'\b\d+\.?\d*[xх×]\d+\.?\d*\b', ''),  # 30x40, also with a Cyrillic x
    (r'\b\s+:\s+', ': '),
    (r'(\D[,./])\b', r'\1 '),
    (r'\s+', ' '),
    (r'^["\']([\w\W]+)["\']$', r'\1'),
    (r"^['_,\-:;]", ''),
    (r"['_,\-:+]$", ''),
    (r'^\.\S+$', ''),
]


def clean_caption(caption: str) -> str:
    """A caption after two passes of the rules, as published pipelines make them."""
    return _clean(_clean(caption))


def _clean(caption: str) -> str:
    caption = _replaced(_ADDRESSES, unquote_plus(caption).strip().lower())
    caption = _replaced(_MARKS, _without_markup(caption))
    if len(_JOINTS.findall(caption)) > 3:  # words_joined_by_marks
        caption = _JOINTS.sub(' ', caption)
    caption = html.unescape(html.unescape(ftfy.fix_text(caption)))
    return _replaced(_TALK, caption).strip()


def _replaced(rules: list[tuple[str, str]], caption: str) -> str:
    for pattern, replacement in rules:
        caption = re.sub(pattern, replacement, caption)
    return caption


def _without_markup(caption: str) -> str:
    text = _Text()
    try:
        text.feed(caption)
        text.close()
    except AssertionError:  # a broken '<![' is no markup
        return caption
    text.end_run()
    return ''.join(text.runs)


class _Text(HTMLParser):
    """What a page shows: no tags, comments, scripts, styles or readings; entities are characters."""

    HIDDEN = ('rt', 'rp', 'style', 'script', 'template')

    def __init__(self) -> None:
        super().__init__(convert_charrefs=False)
        self.runs: list[str] = []
        self._run = ''
        self._open: list[str] = []

    def end_run(self) -> None:
        """What was read since the last tag is one run of text; one of white space alone is a single space."""
        if self._run and not self._run.strip(' \n\t\f\r'):
            self._run = ' '
        if not any(tag in self.HIDDEN for tag in self._open):
            self.runs.append(self._run)
        self._run = ''

    def handle_data(self, data: str) -> None:
        self._run += data

    def handle_charref(self, name: str) -> None:
        number = int(name[1:], 16) if name[0] in 'xX' else int(name)
        self._run += html.unescape(f'&#{number};') or chr(number)

    def handle_entityref(self, name: str) -> None:
        self._run += html5.get(f'{name};', f'&{name}')

    def handle_starttag(self, tag: str, attrs: list) -> None:
        self.end_run()
        self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list) -> None:
        self.end_run()

    def handle_endtag(self, tag: str) -> None:
        self.end_run()
        if tag in self._open:
            while self._open.pop() != tag:
                pass

    def handle_comment(self, data: str) -> None:
        self.end_run()

    handle_decl = handle_pi = handle_comment

    def unknown_decl(self, data: str) -> None:
        self.end_run()
        if data.upper().startswith('CDATA['):
            self.runs.append(data[len('CDATA[') :])
