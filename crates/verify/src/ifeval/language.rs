//! The language of a text.

/// ISO 639-1 codes, as IFEval writes them, with ISO 639-3 codes, as `whatlang` does.
const CODES: &[(&str, &str)] = &[
    ("en", "eng"),
    ("es", "spa"),
    ("pt", "por"),
    ("ar", "ara"),
    ("hi", "hin"),
    ("fr", "fra"),
    ("ru", "rus"),
    ("de", "deu"),
    ("ja", "jpn"),
    ("it", "ita"),
    ("bn", "ben"),
    ("uk", "ukr"),
    ("th", "tha"),
    ("ur", "urd"),
    ("ta", "tam"),
    ("te", "tel"),
    ("bg", "bul"),
    ("ko", "kor"),
    ("pl", "pol"),
    ("he", "heb"),
    ("fa", "pes"),
    ("vi", "vie"),
    ("ne", "nep"),
    ("kn", "kan"),
    ("mr", "mar"),
    ("gu", "guj"),
    ("pa", "pan"),
    ("ml", "mal"),
    ("fi", "fin"),
];

/// The code `whatlang` uses for one of IFEval's, if it knows the language.
pub(super) fn known(code: &str) -> Option<&'static str> {
    let (_, long) = CODES.iter().find(|(short, _)| *short == code)?;
    whatlang::Lang::from_code(*long).map(|_| *long)
}

/// Whether `text` is in the language, given by [`known`]. A text without letters is in every language, as it is there.
pub(super) fn check(text: &str, language: &str) -> Result<(), String> {
    match whatlang::detect_lang(text) {
        Some(found) if found.code() != language => {
            Err(format!("the text looks {}, expected the language `{language}`", found.eng_name()))
        }
        _ => Ok(()),
    }
}
