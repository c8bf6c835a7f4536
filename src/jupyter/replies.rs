//! Completion, inspection and the like: answered from what the session last knew, also while a cell runs.

use aolab::command::{complete, help_at};
use aolab::display::{self, Part};
use aolab::language::parse;
use jupyter_protocol::{
    CodeMirrorMode, CommInfoReply, CompleteReply, CompleteRequest, HelpLink, InspectReply,
    InspectRequest, IsCompleteReply, JupyterMessageContent, KernelInfoReply, LanguageInfo, Media,
    MediaType, ReplyStatus,
};

use super::history::History;
use super::worker::Known;

/// The answer to a request that changes nothing; `None` for messages that want none.
pub(super) fn reply(
    request: &JupyterMessageContent,
    known: &Known,
    history: &History,
) -> Option<JupyterMessageContent> {
    use JupyterMessageContent as Content;
    Some(match request {
        Content::KernelInfoRequest(_) => kernel_info().into(),
        Content::CompleteRequest(request) => completion(request, known).into(),
        Content::InspectRequest(request) => inspection(request, known).into(),
        Content::IsCompleteRequest(request) => is_complete(&request.code).into(),
        Content::HistoryRequest(request) => history.reply(request).into(),
        // We have no widgets.
        Content::CommInfoRequest(_) => CommInfoReply::default().into(),
        _ => return None,
    })
}

pub(super) fn kernel_info() -> KernelInfoReply {
    let version = env!("CARGO_PKG_VERSION").to_owned();
    let page = env!("CARGO_PKG_DESCRIPTION").to_owned();
    KernelInfoReply {
        status: ReplyStatus::Ok,
        protocol_version: "5.3".to_owned(),
        implementation: "aolab".to_owned(),
        implementation_version: version.clone(),
        language_info: LanguageInfo {
            name: "aolab".to_owned(),
            version,
            mimetype: Some("text/x-sh".to_owned()),
            file_extension: Some(".ao".to_owned()),
            // Comments, quotes, pipes and `$name` look like a shell's.
            pygments_lexer: Some("bash".to_owned()),
            codemirror_mode: Some(CodeMirrorMode::Simple("shell".to_owned())),
            nbconvert_exporter: None,
        },
        banner: format!("aolab: {page}. `help` lists the commands, Tab completes."),
        help_links: Vec::<HelpLink>::new(),
        debugger: false,
        error: None,
    }
}

fn completion(request: &CompleteRequest, known: &Known) -> CompleteReply {
    let at = byte_of(&request.code, request.cursor_pos);
    let found = complete(&known.names, &request.code, at);
    let place = |byte: usize| request.code[..byte].chars().count();
    CompleteReply {
        matches: found.words,
        cursor_start: place(found.replaces.start),
        cursor_end: place(found.replaces.end),
        ..CompleteReply::default()
    }
}

fn inspection(request: &InspectRequest, known: &Known) -> InspectReply {
    let at = byte_of(&request.code, request.cursor_pos);
    let variable = known.variables.get(word_at(&request.code, at));
    let parts = match variable {
        Some(value) => Some(display::parts(value)),
        None => {
            help_at(&request.code, at).map(|help| vec![Part { mime: "text/plain", content: help }])
        }
    };
    match parts {
        Some(parts) => InspectReply { found: true, data: media(parts), ..InspectReply::default() },
        None => InspectReply::default(),
    }
}

/// The name that byte `at` touches, without its `$`.
fn word_at(code: &str, at: usize) -> &str {
    let ends = |c: char| !(c.is_alphanumeric() || c == '_');
    let start = code[..at]
        .rfind(ends)
        .map_or(0, |i| i + code[i..].chars().next().map_or(0, char::len_utf8));
    let end = code[at..].find(ends).map_or(code.len(), |i| at + i);
    &code[start..end]
}

fn is_complete(code: &str) -> IsCompleteReply {
    match parse(code) {
        Ok(_) => IsCompleteReply::complete(),
        Err(fault) if fault.incomplete => IsCompleteReply::incomplete("  ".to_owned()),
        Err(_) => IsCompleteReply::invalid(),
    }
}

/// Jupyter counts characters, we count bytes.
fn byte_of(code: &str, characters: usize) -> usize {
    code.char_indices().nth(characters).map_or(code.len(), |(byte, _)| byte)
}

/// The parts in Jupyter's words.
pub(super) fn media(parts: Vec<Part>) -> Media {
    let of = |part: Part| match part.mime {
        "text/html" => MediaType::Html(part.content),
        "image/svg+xml" => MediaType::Svg(part.content),
        "image/png" => MediaType::Png(part.content),
        _ => MediaType::Plain(part.content),
    };
    Media::new(parts.into_iter().map(of).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use aolab::Session;

    fn known() -> Known {
        let mut lab = Session::new();
        lab.run("größe = load tiny | size").expect("a table");
        Known::of(&lab)
    }

    #[test]
    fn places_are_counted_in_characters() {
        let code = "echo 'ä'; $gr";
        let request = CompleteRequest { code: code.into(), cursor_pos: code.chars().count() };
        let reply = completion(&request, &known());
        assert_eq!(reply.matches, ["$größe"]);
        assert_eq!((reply.cursor_start, reply.cursor_end), (10, 13));
        let beyond = CompleteRequest { code: "lo".into(), cursor_pos: 99 };
        assert_eq!(completion(&beyond, &known()).matches, ["load"]);
    }

    #[test]
    fn variables_and_commands_can_be_inspected() {
        let ask = |code: &str, cursor_pos| {
            let request = InspectRequest { code: code.into(), cursor_pos, detail_level: None };
            inspection(&request, &known())
        };
        assert!(ask("$größe | plot", 3).found);
        let help = ask("load tiny", 2);
        assert!(help.found && format!("{:?}", help.data).contains("Examples"), "{help:?}");
        assert!(!ask("nonsense", 3).found);
        assert!(!ask("", 0).found);
    }

    #[test]
    fn open_lines_ask_for_more() {
        use jupyter_protocol::IsCompleteReplyStatus as Status;
        let cases = [
            ("load tiny", Status::Complete),
            ("load tiny |", Status::Incomplete),
            ("echo 'a", Status::Incomplete),
            ("| size", Status::Invalid),
        ];
        for (code, wanted) in cases {
            assert_eq!(is_complete(code).status, wanted, "{code}");
        }
    }
}
