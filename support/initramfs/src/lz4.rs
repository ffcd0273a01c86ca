//! LZ4's legacy frame: a magic number, then blocks with their compressed sizes.

/// Magic number of the frame.
const MAGIC: u32 = 0x184c_2102;

/// Uncompressed bytes in a block.
const BLOCK: usize = 8 << 20;

/// Compresses `data`.
pub fn compress(data: &[u8]) -> Vec<u8> {
    let mut out = MAGIC.to_le_bytes().to_vec();
    for block in data.chunks(BLOCK) {
        let compressed = lz4_flex::block::compress(block);
        // A block of 8 MiB cannot grow beyond 32 bits.
        out.extend((compressed.len() as u32).to_le_bytes());
        out.extend(compressed);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn decompress(frame: &[u8]) -> Vec<u8> {
        let (magic, mut rest) = frame.split_at(4);
        assert_eq!(magic, MAGIC.to_le_bytes());
        let mut out = Vec::new();
        while !rest.is_empty() {
            let (size, blocks) = rest.split_at(4);
            let size = u32::from_le_bytes(size.try_into().unwrap()) as usize;
            out.extend(lz4_flex::block::decompress(&blocks[..size], BLOCK).unwrap());
            rest = &blocks[size..];
        }
        out
    }

    #[test]
    fn data_larger_than_a_block_survives_compression() {
        for size in [0, 1, BLOCK, BLOCK + 12345] {
            let data: Vec<u8> = (0..size).map(|i| (i / 7) as u8).collect();
            assert!(decompress(&compress(&data)) == data);
        }
    }
}
