import { closeSync, fstatSync, openSync, readFileSync, readSync, writeFileSync, writeSync } from 'node:fs';
import { basename } from 'node:path';
import protobuf from 'protobufjs/minimal.js';
import { NpucError } from '../../compiler/errors.ts';

/** What is searched at a time: a binary can be larger than a buffer. */
const WINDOW = 32 << 20;
/** Bytes that one key may have before the graph's name (`PICKLE/256/` has 11). */
const MAX_PREFIX = 64;
/** Each graph's name stands in the graph's record, in its blob's key, and in the backend's own copy of the record. */
const OCCURRENCES = 3;

/**
 * Gives the graphs of a context binary other names, in place. ONNX Runtime makes names of a hash and offers no option that
 * changes them (`ep.context_node_name_prefix` has no effect); Genie orders the parts of a model by these names.
 *
 * The binary is made of FlatBuffers: a string is u32 length, the bytes, NUL. A name may be shorter than the old one: the
 * length is lowered and the rest zeroed, no offset moves. There is no checksum and no lookup by order: renamed binaries of one
 * graph load and run in ONNX Runtime and in Genie (name-graphs.test.ts, genie.test.ts), and so did one of two graphs without
 * shared weights, with its names in either order. Shared ones cannot run on x86: their new names are read back.
 * @param names old name -> new name, at most as long
 * @throws QN013 when the file is not laid out as every binary seen so far: then nothing was written
 */
export function renameGraphs(path: string, names: ReadonlyMap<string, string>): void {
  const refuse: (message: string) => never = (message) => {
    throw new NpucError('QN013', { message: `the graphs cannot be named: ${message}`, where: path, exitCode: 70 });
  };
  const descriptor = openSync(path, 'r+');
  try {
    const edits: { at: number; bytes: Buffer }[] = [];
    for (const [old, name] of names) {
      if (name.length > old.length) refuse(`${name} is longer than ${old.length} characters`);
      const places = findAll(descriptor, old);
      if (places.length !== OCCURRENCES) refuse(`${old} occurs ${places.length} times, not ${OCCURRENCES}`);
      for (const place of places) {
        const prefix = prefixLength(descriptor, place, old.length);
        if (prefix === undefined) refuse(`${old} at byte ${place} is not a string of the known form`);
        const bytes = Buffer.alloc(old.length);
        bytes.write(name, 'latin1');
        const length = Buffer.alloc(4);
        length.writeUInt32LE(prefix + name.length);
        edits.push({ at: place, bytes }, { at: place - prefix - 4, bytes: length });
      }
    }
    for (const { at, bytes } of edits) writeSync(descriptor, bytes, 0, bytes.length, at);
  } finally {
    closeSync(descriptor);
  }
}

function findAll(descriptor: number, text: string): number[] {
  const size = fstatSync(descriptor).size;
  const window = Buffer.alloc(Math.min(WINDOW, size));
  const found: number[] = [];
  for (let offset = 0; offset < size; offset += window.length - text.length) {
    const count = readSync(descriptor, window, 0, window.length, offset);
    for (let at = window.indexOf(text, 0, 'latin1'); at >= 0 && at + text.length <= count; ) {
      if (found.at(-1) !== offset + at) found.push(offset + at);
      at = window.indexOf(text, at + 1, 'latin1');
    }
    if (offset + count >= size) break;
  }
  return found;
}

/** How many bytes of the string stand before the name; undefined when no length fits. */
function prefixLength(descriptor: number, place: number, length: number): number | undefined {
  const reach = Math.min(MAX_PREFIX + 4, place);
  const before = Buffer.alloc(reach);
  readSync(descriptor, before, 0, reach, place - reach);
  for (let prefix = 0; prefix + 4 <= reach; prefix++) {
    if (before.readUInt32LE(reach - prefix - 4) === prefix + length) return prefix;
  }
  return undefined;
}

// Fields of onnx.proto: ModelProto.graph, GraphProto.node, NodeProto.name and .attribute, AttributeProto.s.
const GRAPH = '7';
const NODE = `${GRAPH}.1`;
const NODE_NAME = `${NODE}.3`;
const ATTRIBUTE = `${NODE}.5`;
const ATTRIBUTE_TEXT = `${ATTRIBUTE}.4`;
const LENGTH_DELIMITED = 2;

/**
 * Gives the graph that an EPContext model names another name: in the node's `partition_name`, by which the plugin finds
 * the graph in the binary, and in the node's own name. All other bytes stay.
 * @throws QN013 when the model does not name it
 */
export function renameInModel(path: string, old: string, name: string): void {
  let renamed = 0;
  const rewrite = (bytes: Uint8Array, place: string): Uint8Array => {
    const reader = protobuf.Reader.create(bytes);
    const out: Uint8Array[] = [];
    while (reader.pos < reader.len) {
      const start = reader.pos;
      const tag = reader.uint32();
      if ((tag & 7) !== LENGTH_DELIMITED) {
        reader.skipType(tag & 7);
        out.push(bytes.subarray(start, reader.pos));
        continue;
      }
      const field = `${place}${place && '.'}${tag >>> 3}`;
      let content = reader.bytes();
      if (field === GRAPH || field === NODE || field === ATTRIBUTE) content = rewrite(content, field);
      else if ((field === NODE_NAME || field === ATTRIBUTE_TEXT) && Buffer.from(content).toString() === old) {
        content = Buffer.from(name);
        renamed++;
      }
      out.push(protobuf.Writer.create().uint32(tag).bytes(content).finish());
    }
    return Buffer.concat(out);
  };
  const bytes = rewrite(readFileSync(path), '');
  if (renamed === 0)
    throw new NpucError('QN013', { message: `${basename(path)} does not name ${old}`, where: path, exitCode: 70 });
  writeFileSync(path, bytes);
}
