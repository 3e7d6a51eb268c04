"""The sentences, in four languages each, with blanks for what `slots.py` supplies.

They are built so that whatever fills a blank leaves the grammar right: nothing that a blank brings
has to agree with the words around it, or else it brings those along ("{country:in}").
"""

from __future__ import annotations

from dataclasses import dataclass

from training.tasks.translation.phrases import slots
from training.tasks.translation.phrases.words import Slot


@dataclass(frozen=True)
class Template:
    en: str
    de: str
    fr: str
    es: str
    slots: dict[str, Slot]
    weight: float = 1.0
    """How often it is drawn, next to the others."""


def _template(en: str, de: str, fr: str, es: str, weight: float = 1.0, **filled: Slot) -> Template:
    return Template(en, de, fr, es, filled, weight)


def _alone(weight: float, **filled: Slot) -> Template:
    [name] = filled
    blank = f"{{{name}}}"
    return Template(blank, blank, blank, blank, filled, weight)


T = _template

DATES = (
    _alone(1.5, date=slots.long_date),
    _alone(1.5, date=slots.full_date),
    _alone(2.0, date=slots.medium_date),
    _alone(1.0, date=slots.numeric_date),
    _alone(1.0, moment=slots.date_and_time),
    _alone(0.4, date=slots.day_of_year),
    _alone(0.6, date=slots.month_of_year),
    T(
        "Date: {date}",
        "Datum: {date}",
        "Date : {date}",
        "Fecha: {date}",
        date=slots.long_date,
    ),
    T(
        "The meeting is on {date}.",
        "Die Besprechung ist am {date}.",
        "La réunion est le {date}.",
        "La reunión es el {date}.",
        1.5,
        date=slots.long_date,
    ),
    T(
        "The meeting on {date} has been cancelled.",
        "Die Besprechung am {date} wurde abgesagt.",
        "La réunion du {date} a été annulée.",
        "La reunión del {date} ha sido cancelada.",
        date=slots.long_date,
    ),
    T(
        "The exhibition opens on {date} at {time}.",
        "Die Ausstellung öffnet am {date} um {time} Uhr.",
        "L’exposition ouvre le {date} à {time}.",
        "La exposición abre el {date} a las {time}.",
        1.5,
        date=slots.full_date,
        time=slots.clock,
    ),
    T(
        "The contract is valid until {date}.",
        "Der Vertrag gilt bis zum {date}.",
        "Le contrat est valable jusqu’au {date}.",
        "El contrato es válido hasta el {date}.",
        date=slots.long_date,
    ),
    T(
        "The festival takes place from {a} to {b}.",
        "Das Festival findet vom {a} bis zum {b} statt.",
        "Le festival a lieu du {a} au {b}.",
        "El festival se celebra del {a} al {b}.",
        1.5,
        a=slots.day_of_year,
        b=slots.day_of_year,
    ),
    T(
        "Her birthday is on {date}.",
        "Sie hat am {date} Geburtstag.",
        "Son anniversaire est le {date}.",
        "Su cumpleaños es el {date}.",
        0.6,
        date=slots.day_of_year,
    ),
    T(
        "The figures for {month} have been published.",
        "Die Zahlen für {month} wurden veröffentlicht.",
        "Les chiffres pour {month} ont été publiés.",
        "Se han publicado las cifras de {month}.",
        month=slots.month_of_year,
    ),
    T(
        "The shop is closed on {day}.",
        "Das Geschäft ist am {day} geschlossen.",
        "Le magasin est fermé le {day}.",
        "La tienda está cerrada el {day}.",
        0.2,
        day=slots.weekday,
    ),
    T(
        "Open on these days: {days}.",
        "An diesen Tagen geöffnet: {days}.",
        "Ouvert les jours suivants : {days}.",
        "Abierto estos días: {days}.",
        days=slots.weekdays,
    ),
    T(
        "Rainy months: {months}.",
        "Regenreiche Monate: {months}.",
        "Mois pluvieux : {months}.",
        "Meses lluviosos: {months}.",
        months=slots.months,
    ),
    T(
        "The bridge was built in {year} and renovated in {other}.",
        "Die Brücke wurde {year} gebaut und {other} renoviert.",
        "Le pont a été construit en {year} et rénové en {other}.",
        "El puente se construyó en {year} y se renovó en {other}.",
        year=slots.year,
        other=slots.year,
    ),
)

TIMES = (
    _alone(0.8, time=slots.clock),
    T(
        "The train leaves at {a} and arrives at {b}.",
        "Der Zug fährt um {a} Uhr ab und kommt um {b} Uhr an.",
        "Le train part à {a} et arrive à {b}.",
        "El tren sale a las {a} y llega a las {b}.",
        1.5,
        a=slots.clock,
        b=slots.clock,
    ),
    T(
        "Dinner is at {time}.",
        "Das Abendessen ist um {time} Uhr.",
        "Le dîner est à {time}.",
        "La cena es a las {time}.",
        0.6,
        time=slots.clock,
    ),
    T(
        "The library is open from {a} to {b} on {day}.",
        "Die Bibliothek ist am {day} von {a} bis {b} Uhr geöffnet.",
        "La bibliothèque est ouverte de {a} à {b} le {day}.",
        "La biblioteca está abierta de {a} a {b} el {day}.",
        1.5,
        a=slots.clock,
        b=slots.clock,
        day=slots.weekday,
    ),
    T(
        "Please call me back on {day} at {time}.",
        "Bitte rufen Sie mich am {day} um {time} Uhr zurück.",
        "Veuillez me rappeler le {day} à {time}.",
        "Por favor, llámeme el {day} a las {time}.",
        day=slots.weekday,
        time=slots.clock,
    ),
    T(
        "Can we meet at {time}?",
        "Können wir uns um {time} Uhr treffen?",
        "Pouvons-nous nous rencontrer à {time} ?",
        "¿Podemos vernos a las {time}?",
        0.6,
        time=slots.clock,
    ),
)

RELATIVE_TIMES = (
    _alone(0.8, when=slots.past),
    _alone(0.8, when=slots.future),
    T(
        "The report was sent {when}.",
        "Der Bericht wurde {when} verschickt.",
        "Le rapport a été envoyé {when}.",
        "El informe se envió {when}.",
        when=slots.past,
    ),
    T(
        "{name} arrived {when}.",
        "{name} ist {when} angekommen.",
        "{name} est arrivée {when}.",
        "{name} llegó {when}.",
        name=slots.woman,
        when=slots.past,
    ),
    T(
        "The museum was renovated {when}.",
        "Das Museum wurde {when} renoviert.",
        "Le musée a été rénové {when}.",
        "El museo se renovó {when}.",
        when=slots.past,
    ),
    T(
        "The new version will be released {when}.",
        "Die neue Version erscheint {when}.",
        "La nouvelle version sortira {when}.",
        "La nueva versión saldrá {when}.",
        when=slots.future,
    ),
    T(
        "{name} is coming back {when}.",
        "{name} kommt {when} zurück.",
        "{name} revient {when}.",
        "{name} vuelve {when}.",
        name=slots.man,
        when=slots.future,
    ),
    T(
        "The next bus leaves {when}.",
        "Der nächste Bus fährt {when} ab.",
        "Le prochain bus part {when}.",
        "El próximo autobús sale {when}.",
        when=slots.future,
    ),
)

NUMBERS = (
    _alone(1.0, number=slots.large_integer),
    _alone(1.0, number=slots.decimal),
    _alone(0.6, number=slots.percentage),
    _alone(3.5, number=slots.in_words),
    T(
        "The number is {number}.",
        "Die Zahl lautet {number}.",
        "Le nombre est {number}.",
        "El número es {number}.",
        2.0,
        number=slots.in_words,
    ),
    T(
        "{a} plus {b} equals {c}.",
        "{a} plus {b} ist gleich {c}.",
        "{a} plus {b} égale {c}.",
        "{a} más {b} es igual a {c}.",
        1.5,
        a=slots.integer,
        b=slots.integer,
        c=slots.integer,
    ),
    T(
        "Repeat after me: {a}, {b}, {c}.",
        "Sprechen Sie mir nach: {a}, {b}, {c}.",
        "Répétez après moi : {a}, {b}, {c}.",
        "Repita después de mí: {a}, {b}, {c}.",
        1.5,
        a=slots.small_in_words,
        b=slots.small_in_words,
        c=slots.small_in_words,
    ),
    T(
        "The city has {number} inhabitants.",
        "Die Stadt hat {number} Einwohner.",
        "La ville compte {number} habitants.",
        "La ciudad tiene {number} habitantes.",
        1.5,
        number=slots.large_integer,
    ),
    T(
        "The average is {number}.",
        "Der Durchschnitt beträgt {number}.",
        "La moyenne est de {number}.",
        "La media es de {number}.",
        number=slots.decimal,
    ),
    T(
        "Prices rose by {number} in {year}.",
        "Die Preise stiegen {year} um {number}.",
        "Les prix ont augmenté de {number} en {year}.",
        "Los precios subieron un {number} en {year}.",
        number=slots.percentage,
        year=slots.year,
    ),
    T(
        "Room {number} is free.",
        "Zimmer {number} ist frei.",
        "La chambre {number} est libre.",
        "La habitación {number} está libre.",
        0.5,
        number=slots.room_number,
    ),
    T(
        "We need {a} tables and {b} chairs.",
        "Wir brauchen {a} Tische und {b} Stühle.",
        "Nous avons besoin de {a} tables et de {b} chaises.",
        "Necesitamos {a} mesas y {b} sillas.",
        a=slots.small_count,
        b=slots.small_count,
    ),
)

QUANTITIES = (
    _alone(1.5, quantity=slots.short_quantity),
    _alone(0.7, quantity=slots.length),
    _alone(0.7, quantity=slots.mass),
    _alone(0.5, quantity=slots.area),
    T(
        "The distance is {length}.",
        "Die Entfernung beträgt {length}.",
        "La distance est de {length}.",
        "La distancia es de {length}.",
        1.5,
        length=slots.length,
    ),
    T(
        "The parcel weighs {mass}.",
        "Das Paket wiegt {mass}.",
        "Le colis pèse {mass}.",
        "El paquete pesa {mass}.",
        1.5,
        mass=slots.mass,
    ),
    T(
        "The tank holds {volume}.",
        "Der Tank fasst {volume}.",
        "Le réservoir contient {volume}.",
        "El depósito contiene {volume}.",
        1.5,
        volume=slots.volume,
    ),
    T(
        "The maximum speed is {speed}.",
        "Die Höchstgeschwindigkeit beträgt {speed}.",
        "La vitesse maximale est de {speed}.",
        "La velocidad máxima es de {speed}.",
        speed=slots.speed,
    ),
    T(
        "The park has an area of {area}.",
        "Der Park hat eine Fläche von {area}.",
        "Le parc a une superficie de {area}.",
        "El parque tiene una superficie de {area}.",
        area=slots.area,
    ),
    T(
        "The engine has an output of {power}.",
        "Der Motor hat eine Leistung von {power}.",
        "Le moteur a une puissance de {power}.",
        "El motor tiene una potencia de {power}.",
        power=slots.power,
    ),
    T(
        "The file has a size of {data}.",
        "Die Datei hat eine Größe von {data}.",
        "Le fichier a une taille de {data}.",
        "El archivo tiene un tamaño de {data}.",
        data=slots.data,
    ),
    T(
        "The temperature in {city} is {temperature}.",
        "Die Temperatur in {city} beträgt {temperature}.",
        "La température à {city} est de {temperature}.",
        "La temperatura en {city} es de {temperature}.",
        1.5,
        city=slots.city,
        temperature=slots.temperature,
    ),
    T(
        "The journey takes {duration}.",
        "Die Fahrt dauert {duration}.",
        "Le trajet dure {duration}.",
        "El viaje dura {duration}.",
        duration=slots.duration,
    ),
    T(
        "The film lasts {duration}.",
        "Der Film dauert {duration}.",
        "Le film dure {duration}.",
        "La película dura {duration}.",
        0.6,
        duration=slots.duration,
    ),
    T(
        "Length: {length}; weight: {mass}.",
        "Länge: {length}; Gewicht: {mass}.",
        "Longueur : {length} ; poids : {mass}.",
        "Longitud: {length}; peso: {mass}.",
        length=slots.length,
        mass=slots.mass,
    ),
)

MONEY = (
    _alone(1.5, amount=slots.amount),
    _alone(1.5, amount=slots.named_amount),
    _alone(0.5, currency=slots.currency),
    T(
        "The ticket costs {amount}.",
        "Die Fahrkarte kostet {amount}.",
        "Le billet coûte {amount}.",
        "El billete cuesta {amount}.",
        1.5,
        amount=slots.amount,
    ),
    T(
        "The invoice comes to {amount}.",
        "Die Rechnung beläuft sich auf {amount}.",
        "La facture s’élève à {amount}.",
        "La factura asciende a {amount}.",
        1.5,
        amount=slots.named_amount,
    ),
    T(
        "The price rose from {a} to {b}.",
        "Der Preis stieg von {a} auf {b}.",
        "Le prix est passé de {a} à {b}.",
        "El precio subió de {a} a {b}.",
        1.5,
        a=slots.amount,
        b=slots.amount,
    ),
    T(
        "Please pay {amount} by {date}.",
        "Bitte zahlen Sie {amount} bis zum {date}.",
        "Veuillez payer {amount} avant le {date}.",
        "Por favor, pague {amount} antes del {date}.",
        1.5,
        amount=slots.amount,
        date=slots.long_date,
    ),
    T(
        "Total: {amount}",
        "Summe: {amount}",
        "Total : {amount}",
        "Total: {amount}",
        amount=slots.amount,
    ),
    T(
        "Currency: {currency}.",
        "Währung: {currency}.",
        "Monnaie : {currency}.",
        "Moneda: {currency}.",
        0.3,
        currency=slots.currency,
    ),
)

PLACES = (
    _alone(1.0, place=slots.territory),
    _alone(0.3, place=slots.city),
    _alone(2.0, places=slots.territories),
    _alone(1.0, places=slots.cities),
    T(
        "Country: {place}",
        "Land: {place}",
        "Pays : {place}",
        "País: {place}",
        0.6,
        place=slots.territory,
    ),
    T(
        "Countries in this report: {places}.",
        "Länder in diesem Bericht: {places}.",
        "Pays dans ce rapport : {places}.",
        "Países de este informe: {places}.",
        2.0,
        places=slots.territories,
    ),
    T(
        "{name} lives {country:in}.",
        "{name} lebt {country:in}.",
        "{name} vit {country:in}.",
        "{name} vive {country:in}.",
        name=slots.woman,
        country=slots.country,
    ),
    T(
        "{name} comes {country:from}, but works {other:in}.",
        "{name} kommt {country:from}, arbeitet aber {other:in}.",
        "{name} vient {country:from}, mais travaille {other:in}.",
        "{name} es {country:from}, pero trabaja {other:in}.",
        1.5,
        name=slots.man,
        country=slots.country,
        other=slots.country,
    ),
    T(
        "{name} was born on {date} in {city}.",
        "{name} wurde am {date} in {city} geboren.",
        "{name} est née le {date} à {city}.",
        "{name} nació el {date} en {city}.",
        1.5,
        name=slots.woman,
        date=slots.long_date,
        city=slots.city,
    ),
    T(
        "{name} moved from {a} to {b} in {year}.",
        "{name} ist {year} von {a} nach {b} gezogen.",
        "{name} a déménagé {a:of} à {b} en {year}.",
        "{name} se mudó de {a} a {b} en {year}.",
        1.5,
        name=slots.man,
        a=slots.city,
        b=slots.city,
        year=slots.year,
    ),
    T(
        "The flight from {a} to {b} departs on {day} at {time}.",
        "Der Flug von {a} nach {b} startet am {day} um {time} Uhr.",
        "Le vol {a:of} à {b} part le {day} à {time}.",
        "El vuelo de {a} a {b} sale el {day} a las {time}.",
        2.0,
        a=slots.city,
        b=slots.city,
        day=slots.weekday,
        time=slots.clock,
    ),
    T(
        "The conference takes place in {city} on {date}.",
        "Die Konferenz findet am {date} in {city} statt.",
        "La conférence a lieu à {city} le {date}.",
        "La conferencia se celebra en {city} el {date}.",
        1.5,
        city=slots.city,
        date=slots.full_date,
    ),
    T(
        "It is {time} in {city}.",
        "In {city} ist es {time} Uhr.",
        "Il est {time} à {city}.",
        "En {city} son las {time}.",
        city=slots.city,
        time=slots.clock,
    ),
    T(
        "How far is it from {a} to {b}?",
        "Wie weit ist es von {a} nach {b}?",
        "Quelle est la distance {a:of} à {b} ?",
        "¿Qué distancia hay de {a} a {b}?",
        a=slots.city,
        b=slots.city,
    ),
    T(
        "The company has offices {a:in} and {b:in}.",
        "Die Firma hat Büros {a:in} und {b:in}.",
        "L’entreprise a des bureaux {a:in} et {b:in}.",
        "La empresa tiene oficinas {a:in} y {b:in}.",
        1.5,
        a=slots.country,
        b=slots.country,
    ),
)

LANGUAGES = (
    _alone(0.2, language=slots.language),
    _alone(1.0, languages=slots.languages),
    T(
        "We speak {languages}.",
        "Wir sprechen {languages}.",
        "Nous parlons {languages}.",
        "Hablamos {languages}.",
        1.5,
        languages=slots.languages,
    ),
    T(
        "Does {name} speak {languages}?",
        "Spricht {name} {languages}?",
        "{name} parle-t-elle {languages} ?",
        "¿{name} habla {languages}?",
        1.5,
        name=slots.woman,
        languages=slots.either_language,
    ),
    T(
        "The book has been translated into {language}.",
        "Das Buch wurde in folgende Sprache übersetzt: {language}.",
        "Le livre a été traduit dans la langue suivante : {language}.",
        "El libro se ha traducido al siguiente idioma: {language}.",
        0.5,
        language=slots.language,
    ),
    T(
        "{name} has been learning {language} since {month}.",
        "{name} lernt seit {month} {language}.",
        "{name} apprend cette langue depuis {month} : {language}.",
        "{name} estudia {language} desde {month}.",
        name=slots.woman,
        language=slots.language,
        month=slots.month_of_year,
    ),
)

TEMPLATES = (
    *DATES,
    *TIMES,
    *RELATIVE_TIMES,
    *NUMBERS,
    *QUANTITIES,
    *MONEY,
    *PLACES,
    *LANGUAGES,
)
