import { closeSync, createReadStream, createWriteStream, fstatSync, openSync, readSync } from 'node:fs';
import { Transform } from 'node:stream';
import { pipeline } from 'node:stream/promises';
import { crc32, createInflateRaw } from 'node:zlib';
import { NpucError } from '../../compiler/errors.ts';

/** One file inside a zip archive (a wheel is one). */
export interface ZipEntry {
  readonly name: string;
  /** 0 stored, 8 deflated. */
  readonly method: number;
  readonly crc: number;
  readonly compressedSize: number;
  readonly size: number;
  /** Where the entry's local header starts. */
  readonly headerOffset: number;
}

// Record layouts: PKWARE APPNOTE 6.3, 4.3.7 (local header), 4.3.12 (central directory), 4.3.16 (end record).
const END_SIGNATURE = 0x06054b50;
const CENTRAL_SIGNATURE = 0x02014b50;
const LOCAL_SIGNATURE = 0x04034b50;
const END_SIZE = 22;
const MAX_COMMENT = 0xffff;

/**
 * Reads the central directory of a zip archive without zip64 (below 4 GiB and 65,535 entries, as every wheel here is).
 * @throws IO003 when the file is not such an archive.
 */
export function readZipDirectory(path: string): ZipEntry[] {
  const malformed = (what: string) =>
    new NpucError('IO003', { message: `not a readable zip archive: ${what}`, where: path, hint: 'download it again' });
  const descriptor = openSync(path, 'r');
  try {
    const size = fstatSync(descriptor).size;
    const read = (offset: number, length: number): Buffer => {
      if (offset < 0 || offset + length > size) throw malformed('a record lies outside the file');
      const bytes = Buffer.alloc(length);
      if (readSync(descriptor, bytes, 0, length, offset) !== length) throw malformed('the file is truncated');
      return bytes;
    };
    const tailLength = Math.min(size, END_SIZE + MAX_COMMENT);
    const tail = read(size - tailLength, tailLength);
    let end = tailLength - END_SIZE;
    while (end >= 0 && tail.readUInt32LE(end) !== END_SIGNATURE) end--;
    if (end < 0) throw malformed('it has no end record');
    const count = tail.readUInt16LE(end + 10);
    const directory = read(tail.readUInt32LE(end + 16), tail.readUInt32LE(end + 12));
    const entries: ZipEntry[] = [];
    for (let at = 0, i = 0; i < count; i++) {
      if (at + 46 > directory.length || directory.readUInt32LE(at) !== CENTRAL_SIGNATURE)
        throw malformed('its directory is damaged');
      const nameLength = directory.readUInt16LE(at + 28);
      entries.push({
        name: directory.toString('utf8', at + 46, at + 46 + nameLength),
        method: directory.readUInt16LE(at + 10),
        crc: directory.readUInt32LE(at + 16),
        compressedSize: directory.readUInt32LE(at + 20),
        size: directory.readUInt32LE(at + 24),
        headerOffset: directory.readUInt32LE(at + 42),
      });
      at += 46 + nameLength + directory.readUInt16LE(at + 30) + directory.readUInt16LE(at + 32);
    }
    return entries;
  } finally {
    closeSync(descriptor);
  }
}

/**
 * Unpacks one entry into a new file, streamed, and checks its size and CRC-32.
 * @throws IO003 when the entry is damaged or compressed in another way than deflate.
 */
export async function unpackZipEntry(path: string, entry: ZipEntry, destination: string): Promise<void> {
  const malformed = (what: string) =>
    new NpucError('IO003', { message: `${entry.name}: ${what}`, where: path, hint: 'download the archive again' });
  if (entry.method !== 0 && entry.method !== 8) throw malformed(`compression method ${entry.method} is not supported`);
  const descriptor = openSync(path, 'r');
  const header = Buffer.alloc(30);
  try {
    readSync(descriptor, header, 0, 30, entry.headerOffset);
  } finally {
    closeSync(descriptor);
  }
  if (header.readUInt32LE(0) !== LOCAL_SIGNATURE) throw malformed('its local header is damaged');
  const start = entry.headerOffset + 30 + header.readUInt16LE(26) + header.readUInt16LE(28);
  let crc = 0;
  let size = 0;
  const check = new Transform({
    transform(chunk: Buffer, _encoding, done) {
      crc = crc32(chunk, crc);
      size += chunk.length;
      done(null, chunk);
    },
  });
  // A stream's `end` is inclusive, so an empty entry cannot be expressed as a range.
  if (entry.compressedSize === 0) throw malformed('it is empty');
  const source = createReadStream(path, { start, end: start + entry.compressedSize - 1 });
  const target = createWriteStream(destination, { flags: 'wx' });
  try {
    if (entry.method === 8) await pipeline(source, createInflateRaw(), check, target);
    else await pipeline(source, check, target);
  } catch (cause) {
    const code = (cause as NodeJS.ErrnoException).code ?? '';
    if (code.startsWith('Z_')) throw malformed('its data is damaged');
    throw cause;
  }
  if (size !== entry.size || crc !== entry.crc) throw malformed('its checksum does not match');
}
