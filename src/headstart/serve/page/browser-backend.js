/**
 * The networks inside this browser: adaptation itself is a graph, which ONNX Runtime Web executes in WebAssembly.
 *
 * A graph takes a support set and queries, and gives the outputs before adaptation and after every gradient step.
 */

import * as ort from "./runtime/ort.wasm.min.js";
import { INPUT } from "./drawing.js";

const here = (path) => new URL(path, import.meta.url).href;

ort.env.logLevel = "error";
ort.env.wasm.numThreads = 1; // more would need headers that few static hosts send
ort.env.wasm.wasmPaths = {
  mjs: here("runtime/ort-wasm-simd-threaded.js"),
  wasm: here("runtime/ort-wasm-simd-threaded.wasm"),
};

const WAYS = 5; // as the graph's
const RANGE = 5;
const GRID = 101; // as the server's: GRID places from -RANGE to RANGE

export function browserBackend() {
  const graphs = {
    characters: graph("characters"),
    maml: graph("curve-maml"),
    pretrained: graph("curve-pretrained"),
  };
  const xs = Float32Array.from({ length: GRID }, (_, index) => -RANGE + (2 * RANGE * index) / (GRID - 1));

  const characters = (support, query) =>
    graphs.characters({
      support_inputs: images(support),
      support_targets: new ort.Tensor("int64", BigInt64Array.from(support, (_, index) => BigInt(index)), [support.length]),
      query_inputs: images([query]),
    });
  const blank = Array(INPUT * INPUT).fill(0);
  // While the visitor draws: the first run, which compiles, takes several times as long as the next.
  setTimeout(() => characters(Array(WAYS).fill(blank), blank).catch(() => {}), 100);

  return {
    where: "browser",
    models: async () => (await fetch(here("static.json"))).json(),

    async characters(support, query) {
      const { outputs, adaptation_ms } = await characters(support, query);
      return { probabilities: rows(outputs).map(softmax), adaptation_ms };
    },

    async curve(points, steps) {
      const feeds = {
        support_inputs: column(points.map(([x]) => x)),
        support_targets: column(points.map(([, y]) => y)),
        query_inputs: column(xs),
      };
      const maml = await graphs.maml(feeds);
      const pretrained = await graphs.pretrained(feeds);
      const curves = [maml, pretrained].map(({ outputs }) => rows(outputs).slice(0, steps + 1));
      if (!curves.flat(2).every(Number.isFinite)) {
        throw new Error("Adapting to these points gives a curve that is not finite: change or remove some of them.");
      }
      const adaptation_ms = maml.adaptation_ms + pretrained.adaptation_ms;
      return { x: [...xs], maml: curves[0], pretrained: curves[1], adaptation_ms };
    },
  };
}

/** Loads a graph when it is first needed; then runs it, one request after another, as a session demands. */
function graph(name) {
  let session = null;
  let before = Promise.resolve();
  const run = async (feeds) => {
    session ??= ort.InferenceSession.create(here(`graphs/${name}.onnx`), { executionProviders: ["wasm"] });
    let ready;
    try {
      ready = await session;
    } catch {
      session = null;
      throw new Error("The network could not be loaded: check the connection and try again.");
    }
    const started = performance.now();
    const { outputs } = await ready.run(feeds);
    return { outputs, adaptation_ms: performance.now() - started };
  };
  return (feeds) => {
    const found = before.then(() => run(feeds));
    before = found.catch(() => {});
    return found;
  };
}

const images = (drawings) =>
  new ort.Tensor("float32", Float32Array.from(drawings.flat(), (ink) => ink / 255), [drawings.length, 1, INPUT, INPUT]);

const column = (values) => new ort.Tensor("float32", Float32Array.from(values), [values.length, 1]);

/** The values after each step, of a tensor [steps + 1, ...]. */
function rows({ data, dims }) {
  const length = data.length / dims[0];
  return Array.from({ length: dims[0] }, (_, step) => [...data.subarray(step * length, (step + 1) * length)]);
}

function softmax(values) {
  const most = Math.max(...values);
  const powers = values.map((value) => Math.exp(value - most));
  const total = powers.reduce((sum, power) => sum + power, 0);
  return powers.map((power) => power / total);
}
