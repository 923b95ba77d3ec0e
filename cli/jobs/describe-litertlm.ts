import { basename } from 'node:path';
import { FileSource } from '../../compiler/ir/tensor.ts';
import { checkLitertLm } from '../../targets/tflite/check-litertlm.ts';
import { type ReadSection, readLitertLm } from '../../targets/tflite/litertlm-file.ts';
import { decodeLlmMetadata, type LlmMetadata } from '../../targets/tflite/litertlm-metadata.ts';
import { formatBytes } from '../render-plan.ts';
import { describeTfliteModel } from './describe-tflite.ts';
import type { Description } from './description.ts';

/** A .litertlm file: its sections, what they say, and what a check finds. @throws IO003 for a file that is none */
export function describeLitertLm(path: string, asText: boolean): Description {
  const file = new FileSource(path);
  try {
    const { version, system, sections } = readLitertLm(file);
    const described = sections.map((section) => describeSection(section, path, asText));
    const { errors, warnings } = checkLitertLm(path);
    const known = Object.entries(system).map(([key, value]) => `${key} ${String(value)}`);
    return {
      kind: 'litertlm',
      data: { version, system, sections: described.map(({ data }) => data), errors, warnings },
      lines: [
        `litertlm ${basename(path)}  ${formatBytes(file.size)}  format ${version}`,
        ...known.map((line) => `  ${line}`),
        ...described.flatMap(({ lines }) => lines),
        ...errors.map((error) => `  wrong: ${error}`),
        ...warnings.map((warning) => `  note: ${warning}`),
      ],
    };
  } finally {
    file.close();
  }
}

interface DescribedSection {
  readonly data: Readonly<Record<string, unknown>>;
  readonly lines: readonly string[];
}

function describeSection(section: ReadSection, path: string, asText: boolean): DescribedSection {
  const { type, items, offset, byteLength, source } = section;
  const about = Object.entries(items).map(([key, value]) => `${key} ${String(value)}`);
  const head = [`  ${type}  ${formatBytes(byteLength)} at ${offset}`, ...about].join('  ');
  const data = { type, items, offset, byteLength };
  if (type === 'llm-metadata') {
    const metadata = decodeLlmMetadata(source.read(0, byteLength), path);
    return { data: { ...data, metadata }, lines: [head, ...describeMetadata(metadata)] };
  }
  if (type === 'tflite-model') {
    const model = describeTfliteModel(source, path, asText);
    return { data: { ...data, model: model.data }, lines: [head, ...model.lines.slice(1).map((line) => `  ${line}`)] };
  }
  return { data, lines: [head] };
}

function describeMetadata(metadata: LlmMetadata): string[] {
  const { startToken, stopTokens, sampler, maxTokens, modelType, template } = metadata;
  return [
    `    start token ${JSON.stringify(startToken ?? null)}, stop tokens ${JSON.stringify(stopTokens)}`,
    `    ${modelType ?? 'no model type'}, context ${maxTokens ?? 'not said'}`,
    ...(sampler ? [`    best ${sampler.topK}, share ${sampler.topP}, temperature ${sampler.temperature}`] : []),
    ...(template === undefined ? [] : [`    template ${JSON.stringify(template)}`]),
  ];
}
