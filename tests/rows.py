# ruff: noqa: E501
"""Invented rows of the 24 catalogued benchmarks, each in the row schema that the hub's data set has and lm_eval's task expects.

Three training rows and two of every other role, with different answers. Some hold difficult values that real rows also hold:
letters beyond ASCII, apostrophes, a space at either end, two spaces, an empty or missing field, unusual choice labels or counts.
"""

from __future__ import annotations

from typing import Any

Row = dict[str, Any]


def _choices(*texts: str, labels: str = "ABCDE") -> Row:
    return {"text": list(texts), "label": list(labels[: len(texts)])}


def _arc(ident: str, question: str, key: str, *texts: str, labels: str = "ABCDE") -> Row:
    return {"id": ident, "question": question, "choices": _choices(*texts, labels=labels), "answerKey": key}


def _openbook(ident: str, stem: str, key: str, *texts: str) -> Row:
    return {"id": ident, "question_stem": stem, "choices": _choices(*texts), "answerKey": key}


def _commonsense(ident: str, concept: str, question: str, key: str, *texts: str) -> Row:
    return {"id": ident, "question": question, "question_concept": concept, "choices": _choices(*texts), "answerKey": key}


def _hellaswag(ind: int, activity: str, ctx_a: str, ctx_b: str, label: str, *endings: str, split: str = "train") -> Row:
    row = {"ind": ind, "activity_label": activity, "ctx_a": ctx_a, "ctx_b": ctx_b, "ctx": f"{ctx_a} {ctx_b}".strip()}
    source = {"source_id": f"{'activitynet~v_' if ctx_b else 'wikihow~'}{ind}", "split": split, "split_type": "indomain"}
    return {**row, "endings": list(endings), **source, "label": label}


def _social(context: str, question: str, label: str, *answers: str) -> Row:
    return {
        "context": context,
        "question": question,
        **dict(zip(("answerA", "answerB", "answerC"), answers, strict=True)),
        "label": label,
    }


def _sciq(question: str, correct: str, *distractors: str, support: str) -> Row:
    wrong = dict(zip(("distractor1", "distractor2", "distractor3"), distractors, strict=True))
    return {"question": question, **wrong, "correct_answer": correct, "support": support}


def _mathqa(problem: str, options: str, correct: str, formula: str, category: str) -> Row:
    asked = {"Problem": problem, "Rationale": f'"it is so . answer : {correct}"', "options": options, "correct": correct}
    return {**asked, "annotated_formula": formula, "linear_formula": f"{formula}|", "category": category}


def _medmcqa(ident: str, question: str, cop: int, *options: str, subject: str, exp: str | None = None) -> Row:
    asked = {"id": ident, "question": question, **dict(zip(("opa", "opb", "opc", "opd"), options, strict=True)), "cop": cop}
    return {**asked, "choice_type": "single", "exp": exp, "subject_name": subject, "topic_name": None}


def _headqa(qid: int, category: str, qtext: str, ra: int, *texts: str) -> Row:
    answers = [{"aid": aid, "atext": text} for aid, text in enumerate(texts, start=1)]
    return {
        "name": "Cuaderno_2099_1_X",
        "year": "2099",
        "category": category,
        "qid": qid,
        "qtext": qtext,
        "ra": ra,
        "answers": answers,
    }


def _wic(idx: int, word: str, sentence1: str, form1: str, sentence2: str, form2: str, label: int) -> Row:
    start1, start2 = sentence1.index(form1), sentence2.index(form2)
    spans = {"start1": start1, "start2": start2, "end1": start1 + len(form1), "end2": start2 + len(form2)}
    return {"word": word, "sentence1": sentence1, "sentence2": sentence2, **spans, "idx": idx, "label": label}


ROWS: dict[str, dict[str, list[Row]]] = {
    "mnli": {
        "train": [
            {"premise": "The ferry left at dawn with forty goats aboard. ", "hypothesis": "Animals travelled on the ferry.", "label": 0, "idx": 0},
            {"premise": "Zoë's bakery opens late on Mondays.", "hypothesis": "Zoë sleeps in on Mondays", "label": 1, "idx": 1},
            {"premise": "uh we never did paint that fence", "hypothesis": " The fence was painted twice.", "label": 2, "idx": 2},
        ],
        "validation": [
            {"premise": "Nobody on the hill owns a lawn mower.", "hypothesis": "Someone on the hill owns a mower.", "label": 2, "idx": 0},
            {"premise": "The café sold every last plum tart by noon.", "hypothesis": "There were no plum tarts left at noon.", "label": 0, "idx": 1},
        ],
    },
    "qqp": {
        "train": [
            {"question1": "How do I keep basil alive in winter?", "question2": "What keeps a basil plant alive over the winter?", "label": 1, "idx": 0},
            {"question1": "Why do kettles whistle?", "question2": "Why do trains  whistle?", "label": 0, "idx": 1},
            {"question1": 'What does "naïve" mean?', "question2": 'What is the meaning of "naïve"?', "label": 1, "idx": 2},
        ],
        "validation": [
            {"question1": "Can owls swim?", "question2": "Can owls fly by day?", "label": 0, "idx": 0},
            {"question1": "Is it hard to learn the oboe? ", "question2": "How difficult is learning the oboe?", "label": 1, "idx": 1},
        ],
    },
    "medmcqa": {
        "train": [
            _medmcqa("t-1", "Which bone lies in the forearm?", 1, "Tibia", "Ulna", "Fibula", "Sternum", subject="Anatomy", exp="It lies by the radius."),
            _medmcqa("t-2", "Lack of which vitamin causes scurvy ?", 2, "A", "B₁₂", "C", "K", subject="Biochemistry"),
            _medmcqa("t-3", "Ménière's disease is a disorder of the ", 3, "Liver", "Spleen", "Retina", "Inner ear", subject="ENT"),
        ],
        "validation": [
            _medmcqa("v-1", "Insulin is made in the", 0, "Pancreas", "Thymus", "Kidney", "Gall bladder", subject="Physiology", exp="By its β cells."),
            _medmcqa("v-2", "All are bones of the middle ear except:", 2, "Malleus", "Incus", "Hyoid", "Stapes", subject="Anatomy"),
        ],
    },
    "qnli": {
        "train": [
            {"question": "Who built the lighthouse at Port Ø?", "sentence": "The lighthouse at Port Ø was built by two sisters.", "label": 0, "idx": 0},
            {"question": "When was the mill sold?", "sentence": "The mill ground barley for three villages.", "label": 1, "idx": 1},
            {"question": "How long is the tunnel?", "sentence": "Its tunnel, 900 metres long, is always cold. ", "label": 0, "idx": 2},
        ],
        "validation": [
            {"question": "What colour is the town's flag?", "sentence": "The town has had a mayor since 1871.", "label": 1, "idx": 0},
            {"question": "Where do the herons nest?", "sentence": "Herons nest in the willows below the weir.", "label": 0, "idx": 1},
        ],
    },
    "nq_open": {
        "train": [
            {"question": "who rode the last mail horse into elmsford", "answer": ["Ada Thorne"]},
            {"question": "how many bells hang in the old tower", "answer": ["12", "twelve", "a dozen"]},
            {"question": "where is the river ñandú said to rise", "answer": ["the Grey Hills", "Grey Hills"]},
        ],
        "validation": [
            {"question": "when did the glass bridge open to walkers", "answer": ["May 3 , 1954", "1954"]},
            {"question": "who wrote the song of the salt road", "answer": ["Ingrid O'Dell"]},
        ],
    },
    "sst2": {
        "train": [
            {"sentence": "a warm , clever and generous little film ", "label": 1, "idx": 0},
            {"sentence": "two hours of wet cardboard ", "label": 0, "idx": 1},
            {"sentence": "the cliché-free script sings ", "label": 1, "idx": 2},
        ],
        "validation": [
            {"sentence": "i checked my watch , then i checked it again . ", "label": 0, "idx": 0},
            {"sentence": "it 's a joy from first shot to last . ", "label": 1, "idx": 1},
        ],
    },
    "winogrande": {
        "train": [
            {"sentence": "The rug did not go under the door because the _ was too thick.", "option1": "rug", "option2": "door", "answer": "1"},
            {"sentence": "Noor lent José a coat, so _ stayed warm all night.", "option1": "Noor", "option2": "José", "answer": "2"},
            {"sentence": "Emil beat Otto at chess because _  had practised.", "option1": "Emil", "option2": "Otto", "answer": "1"},
        ],
        "validation": [
            {"sentence": "The jug overflowed into the bowl until the _ was empty.", "option1": "bowl", "option2": "jug", "answer": "2"},
            {"sentence": "Ruth thanked Ivy for the lift, as _ had no car.", "option1": "Ruth", "option2": "Ivy", "answer": "1"},
        ],
    },
    "hellaswag": {
        "train": [
            _hellaswag(1, "Peeling apples", "A man holds an apple.", "he", "2", "eats the bowl.", "paints a wall.", "peels it.", "flies off."),
            _hellaswag(2, "Playing curling", "Two players stand on the ice.", "one of them", "0", "slides a stone.", "plants a tree.", "reads.", "melts."),
            _hellaswag(3, "Baking", "How to make crème flan [title] Warm milk. [step] Stir.", "", "3", "Run.", "Sell it.", "Ski.", "Go  on [substeps] well."),
        ],
        "validation": [
            _hellaswag(4, "Washing a dog", "A girl fills a tub.", "the dog", "1", "drives away.", "is put in the water.", "sings.", "votes.", split="val"),
            _hellaswag(5, "Knitting", "Yarn lies on a lap.", "the needles", "3", "bark.", "boil.", "sail off.", "start to move.", split="val"),
        ],
    },
    "social_iqa": {
        "train": [
            _social("Mara lent Finn her umbrella.", "How will Finn feel?", "1", "thankful", "robbed", "hungry"),
            _social("Ana broke Léo's mug. ", "What will Ana do next?", "2", "laugh", "say she's sorry", "nap"),
            _social("Sam trained for a year.", "Why did Sam do this?", "3", "to sleep", "by chance", "to win"),
        ],
        "validation": [
            _social("Uli hid the gift.", "Why did Uli do this?", "3", "to lose it", "to eat it", "to surprise Bo"),
            _social("Kim waved at Pat.", "What will Pat do next?", "1", "wave back", "bury it", "boil it"),
        ],
    },
    "mathqa": {
        "train": [
            _mathqa("a pen costs 3 and a pad costs 4 . what do both cost ?", "a ) 5 , b ) 6 , c ) 7 , d ) 8 , e ) 9", "c", "add(n0,n1)", "general"),
            _mathqa("what is 20 % of 50 ?", "a ) 10 , b ) 15 , c ) 20 , d ) 25 , e ) none of these", "a", "multiply(n0,n1)", "gain"),
            _mathqa("a cart covers 60 km in 3 hours . find its kmph ?", "a ) 5 , b ) 9.5 , c ) 12 , d ) 15 , e ) 20", "e", "divide(n0,n1)", "physics"),
        ],
        "validation": [
            _mathqa("the side of a square is 6 . find its area .", "a ) 12 , b ) 36 , c ) 24 , d ) 18 , e ) 30", "b", "square_area(n0)", "geometry"),
            _mathqa("half of 1,000 less 100 is", "a ) 100 , b ) 200 , c ) 300 , d ) 400 , e ) 500", "d", "subtract(n0,n1)", "general"),
        ],
        "test": [
            _mathqa("of 8 cups 2 broke . what part is whole ?", "a ) 1 / 4 , b ) 1 / 2 , c ) 2 / 3 , d ) 3 / 4 , e ) 7 / 8", "d", "divide(n0,n1)", "other"),
            _mathqa("rs . 90 is shared by 3 . a share is", "a ) rs . 30 , b ) rs . 20 , c ) rs . 45 , d ) rs . 9 , e ) rs . 3", "a", "divide(n0,n1)", "gain"),
        ],
    },
    "anli_r1": {
        "train": [
            {"uid": "t-1", "premise": "Lake Ûr is a lake of 4 km² in the north.", "hypothesis": "Lake Ûr is in the north.", "label": 0, "reason": "Stated."},
            {"uid": "t-2", "premise": "The Tin Owl is a 1931 play in two acts.", "hypothesis": "The Tin Owl was a success.", "label": 1, "reason": ""},
            {"uid": "t-3", "premise": "Per Holm (born 1950) is a rower.", "hypothesis": "Per Holm was born in 1960. ", "label": 2, "reason": "1950"},
        ],
        "validation": [
            {"uid": "v-1", "premise": "Oak Lane is the second album by Moss.", "hypothesis": "Moss made no album before Oak Lane.", "label": 2, "reason": ""},
            {"uid": "v-2", "premise": "The A9 joins Harrow and Wick.", "hypothesis": "The A9 is busy.", "label": 1, "reason": ""},
        ],
        "test": [
            {"uid": "s-1", "premise": "Birch Hall is a school for 300 pupils.", "hypothesis": "Pupils go to Birch Hall.", "label": 0, "reason": ""},
            {"uid": "s-2", "premise": "Ferro was a racing car of 1962.", "hypothesis": "Ferro was a bicycle.", "label": 2, "reason": ""},
        ],
    },
    "piqa": {
        "train": [
            {"goal": "keep a door from swinging shut", "sol1": "push a wedge under it", "sol2": "push a feather under it", "label": 0},
            {"goal": "How to chill soup quickly? ", "sol1": "Set the pot in hot sand.", "sol2": "Set the pot in iced water.", "label": 1},
            {"goal": "dry a wet paperback", "sol1": "stand it open in moving air", "sol2": "bake it at 250°C", "label": 0},
        ],
        "validation": [
            {"goal": "sharpen a pencil", "sol1": "twist it in a jar of honey", "sol2": "twist it in a sharpener", "label": 1},
            {"goal": "hang a picture that won't fall", "sol1": "use a nail in the wall", "sol2": "use a strip of wet paper", "label": 0},
        ],
    },
    "sciq": {
        "train": [
            _sciq("What gas do leaves take in?", "carbon dioxide", "argon", "neon", "helium", support="Leaves take in CO₂."),
            _sciq("What do bees collect?", "nectar", "bark", "salt", "sand", support=""),
            _sciq("What pumps blood?", "the heart", "the skin", "the ear", "the lung", support="\n The heart pumps blood. "),
        ],
        "validation": [
            _sciq("What is frozen water?", "ice", "dew", "fog", "steam", support="Ice is water, frozen."),
            _sciq("Which star is nearest?", "the Sun", "Vega", "Rigel", "Sirius", support=""),
        ],
        "test": [
            _sciq("What holds us down?", "gravity", "light", "sound", "magnetism", support=""),
            _sciq("What do we call molten rock?", "magma", "slate", "mud", "chalk", support="Below ground it is magma."),
        ],
    },
    "commonsense_qa": {
        "train": [
            _commonsense("c1", "ladder", "Where would you lean a ladder?", "B", "pond", "wall", "cloud", "spoon", "song"),
            _commonsense("c2", "candle", "It was dark.  What did she light?", "E", "stone", "milk", "rope", "window", "candle"),
            _commonsense("c3", "fiancé", "Whom does a fiancé mean to marry? ", "A", "his fiancée", "a tree", "a judge", "nobody", "a horse"),
        ],
        "validation": [
            _commonsense("c4", "bread", "Where do people buy bread?", "D", "a quarry", "the moon", "a choir", "a bakery", "a mailbox"),
            _commonsense("c5", "sleep", "What do tired people want?", "C", "noise", "debts", "sleep", "gravel", "a ladder"),
        ],
    },
    "boolq": {
        "train": [
            {"question": "is the tarn at hollin ever frozen", "passage": "Hollin Tarn -- The tarn freezes each January.", "idx": 0, "label": 1},
            {"question": "can you cross the moor by train", "passage": "The moor has paths only; its railway closed in 1960. ", "idx": 1, "label": 0},
            {"question": "do all bells at st. brigid's ring at once", "passage": "St. Brigid's -- All bells (“the maids”) ring as one.", "idx": 2, "label": 1},
        ],
        "validation": [
            {"question": "is a quern a kind of boat", "passage": "Quern -- A quern is a stone for grinding corn by hand.", "idx": 0, "label": 0},
            {"question": "does the hare island ferry run on sundays", "passage": "The ferry runs daily.", "idx": 1, "label": 1},
        ],
    },
    "cola": {
        "train": [
            {"sentence": "The gardener who we met waters roses.", "label": 1, "idx": 0},
            {"sentence": "Him gave the to book she.", "label": 0, "idx": 1},
            {"sentence": "Renée wondered  which cake to bake.", "label": 1, "idx": 2},
        ],
        "validation": [
            {"sentence": "The kettle boiled the water itself by.", "label": 0, "idx": 0},
            {"sentence": "Whose boat sank?", "label": 1, "idx": 1},
        ],
    },
    "gsm8k": {
        "train": [
            {"question": "Ida has 4 hens and buys 3.  How many has she?", "answer": "Ida has 4+3=<<4+3=7>>7 hens.\n#### 7"},
            {"question": "A crate holds 250 figs. How many figs do 5 crates hold?", "answer": "5*250=<<5*250=1250>>1,250 figs.\n#### 1,250"},
            {"question": "A €9 hat is sold for a third. What does it cost?", "answer": "9/3 = €<<9/3=3>>3\nIt costs €3.\n#### 3"},
        ],
        "test": [
            {"question": "Jo walks 2 miles a day. How far is that in 6 days?", "answer": "2*6=<<2*6=12>>12 miles\n#### 12"},
            {"question": "Of 30 eggs 11 broke. How many are left?", "answer": "30-11=<<30-11=19>>19 eggs are left.\n#### 19"},
        ],
    },
    "wic": {
        "train": [
            _wic(0, "bank", "We sat on the bank and fished.", "bank", "The bank raised its fees.", "bank", 0),
            _wic(1, "carry", "Zoë carried the chairs in.", "carried", "He carries a lamp.", "carries", 1),
            _wic(2, "cold", "A cold wind rose.", "cold", "Her cold kept her in bed. ", "cold", 0),
        ],
        "validation": [
            _wic(0, "plant", "Water the plants.", "plants", "That plant needs light.", "plant", 1),
            _wic(1, "note", "He sang a high note.", "note", "She left a note at the door.", "note", 0),
        ],
    },
    "openbookqa": {
        "train": [
            _openbook("1-1", "A magnet pulls at", "C", "wood", "wool", "iron", "glass"),
            _openbook("1-2", "At −5 °C a puddle will", "A", "freeze", "boil", "burn", "sing"),
            _openbook("1-3", "Which animal lays eggs? ", "D", "a cow", "a bat", "a cat", "a hen"),
        ],
        "validation": [
            _openbook("2-1", "Shade is made when light is", "B", "doubled", "blocked", "heard", "frozen"),
            _openbook("2-2", "A seed needs, to sprout,", "A", "water", "wax", "a drum", "a lens"),
        ],
        "test": [
            _openbook("3-1", "The Moon's light comes from", "D", "its fires", "the sea", "clouds", "the Sun"),
            _openbook("3-2", "Rubbing hands together makes", "B", "ice", "heat", "rain", "salt"),
        ],
    },
    "mrpc": {
        "train": [
            {"sentence1": "The council closed the pier on Friday .", "sentence2": "On Friday , the pier was closed by the council .", "label": 1, "idx": 0},
            {"sentence1": "Shares of Vell rose 3 percent .", "sentence2": "Vell named Åsa Lind as its chief .", "label": 0, "idx": 1},
            {"sentence1": '" We are glad , " said the coach .', "sentence2": 'The coach said : " We are glad . " ', "label": 1, "idx": 2},
        ],
        "validation": [
            {"sentence1": "Rain delayed the final by an hour .", "sentence2": "The final drew 9,000 people .", "label": 0, "idx": 0},
            {"sentence1": "Two men were freed on Monday .", "sentence2": "On Monday two men were released .", "label": 1, "idx": 1},
        ],
    },
    "headqa_en": {
        "train": [
            _headqa(1, "nursery", "A fever is a raised:", 2, "Height.", "Temperature.", "Weight.", "Pulse only.", "Fee."),
            _headqa(2, "chemistry", "The pH of pure water at 25 °C is:", 4, "1.", "3.", "5.", "7.", "14."),
            _headqa(3, "biology", "In cells, ATP is made mostly in the: ", 5, "Wall.", "Nucleus.", "Vacuole.", "Cilia.", "Mitochondria."),
        ],
        "validation": [
            _headqa(4, "medicine", "Which of these is a blood group?", 1, "AB", "XY", "µg", "pH"),
            _headqa(5, "psychology", "Fear of heights is called:", 3, "Insomnia.", "Amnesia.", "Acrophobia.", "Euphoria."),
        ],
        "test": [
            _headqa(6, "pharmacology", "Penicillin is a drug against:", 4, "Pain.", "Fear.", "Viruses.", "Bacteria."),
            _headqa(7, "biology", "An insect's legs number:", 2, "Four.", "Six.", "Eight.", "Ten."),
        ],
    },
    "rte": {
        "train": [
            {"sentence1": "The Dargle flooded two farms last week.", "sentence2": "Two farms were flooded.", "label": 0, "idx": 0},
            {"sentence1": "Mr. Ölund joined the firm in 1988.", "sentence2": "Mr. Ölund leads the firm.", "label": 1, "idx": 1},
            {"sentence1": "Wool prices fell, and flocks shrank. ", "sentence2": "The price of wool went down.", "label": 0, "idx": 2},
        ],
        "validation": [
            {"sentence1": "A ring was found in the well.", "sentence2": "The ring was gold.", "label": 1, "idx": 0},
            {"sentence1": "Both pilots walked away unhurt.", "sentence2": "No pilot was hurt.", "label": 0, "idx": 1},
        ],
    },
    "arc_easy": {
        "train": [
            _arc("E_1", "Which of these is a liquid at room temperature?", "B", "chalk", "milk", "iron", "salt"),
            _arc("E_2", "What does a thermometer measure?", "3", "weight", "length", "temperature", "sound", labels="1234"),
            _arc("E_3", "Water boils at 100 °C and then becomes ", "A", "steam.", "ice.", "sand."),
        ],
        "validation": [
            _arc("E_4", "Which animal's young drink milk?", "D", "a trout's", "a frog's", "a hen's", "a cat's"),
            _arc("E_5", "Plants make food from", "A", "sunlight.", "moonlight.", "thunder.", "sand."),
        ],
        "test": [
            _arc("E_6", "Day follows night because Earth", "C", "cools.", "grows.", "spins.", "stops."),
            _arc("E_7", "Which tool makes small things look larger?", "B", "a scale", "a lens", "a ruler", "a funnel"),
        ],
    },
    "arc_challenge": {
        "train": [
            _arc("C_1", "A ball thrown upward slows because of", "D", "light.", "heat.", "its colour.", "gravity."),
            _arc("C_2", "Which change is chemical?", "E", "melting", "tearing", "bending", "freezing", "rusting"),
            _arc("C_3", "Sound cannot travel through  a", "2", "wall.", "vacuum.", "lake.", "rail.", labels="1234"),
        ],
        "validation": [
            _arc("C_4", "A 2 kg mass pushed with 4 N speeds up, in m/s², by", "B", "1.", "2.", "6.", "8."),
            _arc("C_5", "Fossils of fish on a hill suggest the hill was once", "C", "hollow.", "on fire.", "under water.", "flat."),
        ],
        "test": [
            _arc("C_6", "Which part of a cell holds most of its DNA?", "A", "the nucleus", "the wall", "the membrane", "the sap"),
            _arc("C_7", "Tides are caused chiefly by the", "D", "wind.", "whales.", "rivers.", "Moon."),
        ],
    },
}  # fmt: skip
