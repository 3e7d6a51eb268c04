"""Which places and languages the sentences speak of, and what grammar must know of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from training.tasks.translation.phrases.words import Parallel, Word, split

TERRITORIES = split(
    "AE AL AM AO AR AT AU AZ BA BD BE BG BH BO BR BY CA CH CL CM CN CO CR CU CY CZ DE DK"
    " DZ EC EE EG ES ET FI FR GB GH GR GT HN HR HU ID IE IL IN IQ IR IS IT JM JO JP KE KH"
    " KR KW KZ LB LK LT LU LV LY MA ME MK MT MX MY NG NI NL NO NP NZ PE PH PK PL PT PY QA"
    " RO RS RU RW SA SE SG SI SK SN SV TH TN TR TZ UA UG US UY VE VN YE ZA ZM ZW"
)
"""Keys of CLDR's table, as ISO 3166 has them; those whose names everybody writes."""

LANGUAGES = split(
    "af ar bg ca cs cy da de el en es et eu fa fi fr he hi hr hu hy id is it ja ka ko ku"
    " lb lt lv mk ms nl no pl pt ro ru sk sl sr sv sw ta th tr uk vi zh"
)
"""Keys of CLDR's table, as ISO 639 has them."""

CITIES = split(
    "Africa/Algiers Africa/Casablanca Africa/Dakar Africa/Lagos Africa/Nairobi"
    " Africa/Tunis America/Argentina/Buenos_Aires America/Bogota America/Caracas"
    " America/Chicago America/Lima America/Los_Angeles America/Montevideo America/New_York"
    " America/Sao_Paulo America/Toronto America/Vancouver Asia/Baghdad Asia/Bangkok"
    " Asia/Beirut Asia/Damascus Asia/Dubai Asia/Jakarta Asia/Jerusalem Asia/Manila"
    " Asia/Seoul Asia/Shanghai Asia/Singapore Asia/Taipei Asia/Tehran Asia/Tokyo"
    " Australia/Melbourne Australia/Perth Australia/Sydney Europe/Amsterdam Europe/Athens"
    " Europe/Belgrade Europe/Berlin Europe/Bratislava Europe/Brussels Europe/Bucharest"
    " Europe/Budapest Europe/Copenhagen Europe/Dublin Europe/Istanbul Europe/Kyiv"
    " Europe/Lisbon Europe/Ljubljana Europe/London Europe/Madrid Europe/Moscow Europe/Oslo"
    " Europe/Paris Europe/Prague Europe/Riga Europe/Rome Europe/Sarajevo Europe/Sofia"
    " Europe/Stockholm Europe/Tallinn Europe/Vienna Europe/Vilnius Europe/Warsaw"
    " Europe/Zagreb Europe/Zurich Pacific/Auckland"
)
"""Time zones whose exemplar city has a name in every language, and none with an article."""


@dataclass(frozen=True)
class Country:
    """How a country's name is built into a sentence."""

    french: Literal["feminine", "masculine", "vowel", "plural"]
    german: str | None = None
    """After "in" and "aus", where it is not the bare name."""
    english: Literal["", "the "] = ""
    spanish: Literal["", "los "] = ""

    def decline(self, names: dict[str, str]) -> Parallel:
        en, de, fr, es = (names[code] for code in ("en", "de", "fr", "es"))
        dative = self.german or de
        inside, origin = {
            "feminine": (f"en {fr}", f"de {fr}"),
            "vowel": (f"en {fr}", f"d’{fr}"),
            "masculine": (f"au {fr}", f"du {fr}"),
            "plural": (f"aux {fr}", f"des {fr}"),
        }[self.french]
        return {
            "en": Word(en, **{"in": f"in {self.english}{en}", "from": f"from {self.english}{en}"}),
            "de": Word(de, **{"in": f"in {dative}", "from": f"aus {dative}"}),
            "fr": Word(fr, **{"in": inside, "from": origin}),
            "es": Word(es, **{"in": f"en {self.spanish}{es}", "from": f"de {self.spanish}{es}"}),
        }


COUNTRIES = {
    **dict.fromkeys(
        split("FR BE PL CZ HU SI HR RS RO BG GR SE NO FI LV LT RU CO BO CN KR TH MY NZ TN JO"),
        Country("feminine"),
    ),
    **dict.fromkeys(
        split("DE ES IT IE AT IS EE AR EC UY IN ID AU EG DZ ZA IL SA ET"),
        Country("vowel"),
    ),
    **dict.fromkeys(
        split("PT LU DK CA MX BR CL PE PY VE JP VN MA KE NG SN GH NP CM"),
        Country("masculine"),
    ),
    "CH": Country("feminine", german="der Schweiz"),
    "SK": Country("feminine", german="der Slowakei"),
    "TR": Country("feminine", german="der Türkei"),
    "UA": Country("vowel", german="der Ukraine"),
    "NL": Country("plural", german="den Niederlanden", english="the ", spanish="los "),
    "PH": Country("plural", german="den Philippinen", english="the "),
    "US": Country("plural", german="den Vereinigten Staaten", english="the "),
}
