import { mkdirSync, readdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { basename, join } from 'node:path';
import { NpucError } from '../../compiler/errors.ts';
import { NativeHost, type NativeToolchain } from '../../compiler/runtime/ort-native.ts';
import { type ContextModel, type FailureOptions, openForCompile, placeModel } from './compile-context.ts';

/** The output folder receives `<name>.dlc` and is made when absent. */
export interface DlcOptions extends FailureOptions {
  readonly memoryLimit?: number;
}

const FOLDER = 'dlc';
const SOME_TIME = /^"timestamp": "\d{4}-\d\d-\d\d \d\d:\d\d:\d\d UTC"$/;
const LABEL = '"timestamp": "';
/** The earliest time that a zip archive can say, which the vendor writes into the archive's own fields. */
const NO_TIME = '"timestamp": "1980-01-01 00:00:00 UTC"';

/**
 * Writes the graph that the vendor's compiler gets as a DLC file, which the vendor's own tools go on from: an uncompressed
 * zip of the network and its parameters, 4-bit weights one byte each. The plugin writes it on the way to a session, and
 * refuses to write a context binary in that session: so each graph is compiled once more. The times that the vendor puts into
 * its metadata are replaced, so that the same model gives the same bytes. Checksums inside are 0, as the vendor leaves them.
 * @returns paths, in the order of the models
 * @throws QN010, QN011, RT202, RT203 as compileContext; QN011 when a graph gives more or less than one file
 */
export async function dumpDlc(
  toolchain: NativeToolchain,
  models: readonly ContextModel[],
  options: DlcOptions,
): Promise<string[]> {
  mkdirSync(options.outputFolder, { recursive: true });
  const paths: string[] = [];
  for (const model of models) {
    const host = await NativeHost.start(toolchain, {
      workFolder: options.outputFolder,
      ...(options.signal ? { signal: options.signal } : {}),
      ...(options.memoryLimit === undefined ? {} : { memoryLimit: options.memoryLimit }),
    });
    try {
      placeModel(model, host.folder);
      mkdirSync(join(host.folder, FOLDER));
      await openForCompile(
        host,
        model,
        {
          provider: 'qnn',
          soc: options.soc.number,
          providerOptions: {
            dump_qnn_ir_dlc: '1',
            dump_qnn_ir_dlc_dir: FOLDER,
            qnn_ir_backend_path: join(toolchain.qnnLibraryFolder, 'libQnnIr.so'),
          },
        },
        options,
      );
      const written = readdirSync(join(host.folder, FOLDER));
      if (written.length !== 1) {
        throw new NpucError('QN011', {
          message: `${model.name} gave ${written.length} DLC files, not one`,
          where: model.path,
        });
      }
      const path = join(options.outputFolder, `${model.name}.dlc`);
      rmSync(path, { force: true });
      writeFileSync(path, forgetTimes(readFileSync(join(host.folder, FOLDER, written[0]!))));
      paths.push(path);
    } finally {
      await host.close();
    }
  }
  return paths;
}

/** Every time in the text parts becomes the same one of equal length. */
function forgetTimes(bytes: Buffer): Buffer {
  for (let at = bytes.indexOf(LABEL); at >= 0; at = bytes.indexOf(LABEL, at + LABEL.length)) {
    const found = bytes.toString('latin1', at, at + NO_TIME.length);
    bytes.write(found.replace(SOME_TIME, NO_TIME), at, 'latin1');
  }
  return bytes;
}

/** What a manifest says of the models that a target was compiled from. */
interface CompiledTarget {
  readonly source?: string;
  readonly graphs?: readonly { readonly source?: string; readonly parts?: readonly { readonly source?: string }[] }[];
  readonly files: readonly string[];
}

/**
 * Adds the DLC files of a compiled target to its folder and to its part of the manifest.
 * @param out the output folder
 * @throws as dumpDlc
 */
export async function addDlc<T extends CompiledTarget>(
  toolchain: NativeToolchain,
  target: T,
  out: string,
  options: Omit<DlcOptions, 'outputFolder'>,
): Promise<T> {
  const sources = [
    target.source,
    ...(target.graphs ?? []).flatMap((graph) => [graph.source, ...(graph.parts ?? []).map(({ source }) => source)]),
  ].filter((source) => source !== undefined);
  // The data of all sources lies beside them.
  const data = target.files.filter((path) => path.includes('/qdq/') && !path.endsWith('.onnx'));
  const models = [...new Set(sources)].map((source) => ({
    name: basename(source, '.onnx'),
    path: join(out, source),
    externalData: data.map((path) => basename(path)),
  }));
  const paths = await dumpDlc(toolchain, models, { ...options, outputFolder: join(out, 'qnn', FOLDER) });
  return { ...target, files: [...target.files, ...paths.map((path) => `qnn/${FOLDER}/${basename(path)}`)] };
}
