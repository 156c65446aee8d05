"""What sampled captions look like: each kind is named, and sentences as data sets have them are none of them."""

import pytest

from tips_ray.data.sources.caption_quality import described, doubts

SENTENCES = [
    "A man with a red helmet on a small moped on a dirt road.",
    "Two dogs of different breeds looking at each other on the road .",
    "a very typical bus station",
    "sierra looked stunning in this top and this skirt while performing with person at their former university",
    "young confused girl standing in front of a wardrobe",
    "# of the best cars : person , left , and actor attend the premiere",
    "<PERSON> and <PERSON> at the premiere of film (2014)",
    "Rhythm & blues: R&B; 50% off - Men's T-shirt, size 12",
    "3D illustration of a heart = love",
    "Place de la Concorde in Paris",
    "I <3 NY, by photo.com",
    "image may contain: 1 person, smiling, sky",
    "Class photo (1999); on sale",
    "from the archive import of cars",
    "person1 / person2 - let it be",
    "golden-retriever on the beach [photo]",
    "Café au lait and crème brûlée",
    "DSLR photo of a die-cast car",
    "red shoes",
    '"happy" and "sad"',
    "und so weiter",
]
ODD = {
    "markup": ["<p>a dog</p>", "a dog<br/>runs", 'see <a href="x">a dog</a>', "tom &amp; jerry", "[dog](http://x.y)"],
    "code or JSON": [
        *['{"en": "a dog", "de', '"label": 3, "name": "dog"', "def draw(dog):", "if (dog) { run", "x = dog.bark();"],
        *["import torch as t", "dog('bark', 3);", "{{ product.title }}", "const dog = 3", "color: red; width: 3px;"],
    ],
    "numbers or signs": ["12", "3.5", "2019-01-02 10:34", "[1, 2, 3]", "...", "nan", "#7"],
    "file names or addresses": [
        *["IMG_1234.jpg", "my dog.JPEG", "DSC00123", "https://x.y/dog", "0f8fad5b-d9cb-469f-a165-70867728950e"],
        *["d41d8cd98f00b204e9800998ecf8427e", "a_dog_01", "photos/dog.png", "www.dogs.com"],
    ],
    "quotation marks": ['"a dog"', "'a dog'", '"a \\"red\\" dog"'],
    "a wrong encoding": ["caf\ufffd", "cafÃ©", "a dogâ€™s ball"],
}


def _told(captions: list[str]) -> list[str]:
    return [described(one, len(captions), "web captions", captions[one.which[0]], "x") for one in doubts(captions)]


def test_sentences_give_no_doubt():
    assert _told(SENTENCES) == [] and _told([]) == [] and _told(SENTENCES[:1]) == []


@pytest.mark.parametrize("kind", ODD)
def test_each_kind_is_told_with_its_count_and_first_example(kind):
    for caption in ODD[kind]:
        (told,) = _told([*SENTENCES, caption, caption])
        assert (
            f"2 of 23 sampled web captions {'' if kind in told else '-'}" in told and f"e.g. {caption!r} of x; " in told
        )
    assert len(_told(ODD[kind])) == 1 and f"{len(ODD[kind])} of {len(ODD[kind])} " in _told(ODD[kind])[0]


def test_one_odd_caption_among_many_is_no_doubt_and_one_alone_is():
    assert _told([*SENTENCES, "IMG_1234.jpg"]) == []
    assert "1 of 1 sampled web captions look like file names" in _told(["IMG_1234.jpg"])[0]


def test_one_text_repeated_is_told_with_its_share():
    (told,) = _told([*SENTENCES, *["a photo"] * 5])
    assert told == (
        "5 of 26 sampled web captions are one text (19%), and 22 texts are different, e.g. 'a photo' of x; check that "
        "each image has a caption of its own"
    )
    assert _told([*SENTENCES, *["a photo"] * 2]) == []


def test_few_different_texts_are_told_though_none_is_frequent():
    (told,) = _told([f"a photo of class {number % 40}" for number in range(130)])
    assert told.startswith("4 of 130 sampled web captions are one text (3%), and 40 texts are different, e.g. ")
    assert _told([f"a photo of class {number % 40}" for number in range(75)]) == []


OTHERS = {
    "Chinese or Japanese": ("script", "一只狗在草地上"),
    "Cyrillic": ("script", "собака бежит по траве"),
    "Arabic": ("script", "كلب يركض"),
    "German": ("language", "ein Hund auf dem Gras und eine Katze"),
    "French": ("language", "un chien dans le jardin avec une balle"),
    "Spanish": ("language", "un perro corre por la playa con una pelota"),
    "Italian": ("language", "un cane corre nella neve con una palla"),
    "Portuguese": ("language", "um cachorro na praia com uma bola"),
}


@pytest.mark.parametrize("name", OTHERS)
def test_another_language_or_script_than_most_is_told(name):
    kind, text = OTHERS[name]
    most = "Latin" if kind == "script" else "English"
    (told,) = _told([*SENTENCES, *(f"{text} {number}" for number in range(3))])
    words = f"3 of 24 sampled web captions are of another {kind} than most (3 {name}; most are {most}), e.g. '{text} 0'"
    assert told.startswith(words)


@pytest.mark.parametrize("name", OTHERS)
def test_captions_that_are_all_in_one_other_language_are_no_doubt(name):
    assert _told([f"{OTHERS[name][1]} {number}" for number in range(9)]) == []


def test_a_long_caption_is_shortened_in_the_sentence():
    (told,) = _told(["<p>" + "dog " * 500])
    assert len(told) < 300
