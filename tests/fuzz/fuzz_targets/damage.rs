// Shared by the targets that damage a valid file; a random one would never get past its first bytes.

/// An input that begins with an even byte is the file; an odd one is a list of edits of `valid`,
/// eleven bytes each: what to do, where (two bytes), and eight bytes of content.
pub fn file_of(input: &[u8], valid: &[u8]) -> Vec<u8> {
    let Some((first, rest)) = input.split_first() else { return Vec::new() };
    if first % 2 == 0 {
        return rest.to_vec();
    }
    let mut file = valid.to_vec();
    for edit in rest.chunks_exact(11) {
        let at = usize::from(u16::from_le_bytes([edit[1], edit[2]])) % (file.len() + 1);
        let (end, content) = ((at + 8).min(file.len()), &edit[3..]);
        match edit[0] % 5 {
            0 => file[at..end].copy_from_slice(&content[..end - at]),
            1 => file[at..(at + 1).min(end)].fill(content[0]),
            2 => drop(file.splice(at..at, content.iter().copied())),
            3 => drop(file.drain(at..end)),
            _ => file.truncate(at),
        }
    }
    file
}
