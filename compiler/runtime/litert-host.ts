/**
 * The LiteRT child: loads libLiteRt by FFI, runs one signature of one file on all the given inputs, then ends. Vendors'
 * dispatch libraries are loaded into it, so it never runs in the tool's own process.
 * Argument: parent's process id. One request comes on descriptor 3, one answer goes back.
 */
import { ACCELERATORS, loadNativeModel } from './litert-c-api.ts';
import type { LitertRequest } from './litert-dispatch.ts';
import { dieWithParent } from './native-api.ts';
import { readExactly, receiveRequest, sendAnswer } from './native-frames.ts';

const CHANNEL = 3;

const [parent = '0'] = process.argv.slice(2);
dieWithParent(Number(parent));
const request = receiveRequest(CHANNEL) as unknown as LitertRequest | undefined;
if (request) {
  try {
    const blobs = (request.blobs ?? []).map((length) => {
      const bytes = new Uint8Array(length);
      if (!readExactly(CHANNEL, bytes)) process.exit(0);
      return bytes;
    });
    const results = runAll(request, blobs);
    sendAnswer(CHANNEL, { result: results.length }, results);
  } catch (error) {
    sendAnswer(CHANNEL, { error: (error as Error).message });
  }
}
// Vendors' exit handlers are not to be trusted; everything is written by now.
process.kill(process.pid, 'SIGKILL');

function runAll({ library, dispatch, model, signature, inputs, outputs, runs }: LitertRequest, blobs: Uint8Array[]) {
  const loaded = loadNativeModel(library, model, ACCELERATORS.cpu | ACCELERATORS.npu, dispatch);
  const ports = loaded.signature(signature, inputs, outputs);
  return Array.from({ length: runs }, (_, n) =>
    ports.run(blobs.slice(n * inputs.length, (n + 1) * inputs.length)),
  ).flat();
}
